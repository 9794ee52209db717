// On a small screen a figure can be enlarged: a button below it opens it as wide as it was drawn, to be moved about with a finger.
(() => {
  "use strict";
  const DRAWN = 850; // pixels: as wide as a figure is drawn

  const open = (image) => {
    const dialog = document.createElement("dialog");
    dialog.className = "catome-enlarged";
    dialog.setAttribute("aria-label", image.alt || "figure");
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "close";
    const pane = document.createElement("div");
    pane.tabIndex = 0; // scrolls with the arrow keys, too
    pane.setAttribute("role", "group");
    pane.setAttribute("aria-label", "the figure, to scroll");
    const large = image.cloneNode();
    large.removeAttribute("id");
    large.removeAttribute("style");
    large.style.width = `${Math.max(DRAWN, 2 * innerWidth)}px`;
    pane.append(large);
    dialog.append(close, pane);
    document.body.append(dialog);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    dialog.showModal();
  };

  const prepare = () => document.querySelectorAll(".bd-article img").forEach((image) => {
    if (image.closest("a, .catome-touch, dialog") || image.width < 200) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "catome-enlarge";
    button.textContent = "enlarge";
    button.setAttribute("aria-label", `enlarge: ${image.alt}`.slice(0, 120));
    button.addEventListener("click", () => open(image));
    image.addEventListener("click", () => {
      if (getComputedStyle(button).display !== "none") open(image);
    });
    image.after(button);
  });
  addEventListener("load", prepare);
})();
