// A box that scrolls can be reached with the keyboard: also one that is opened, or gets narrow, after the page was loaded.
(() => {
  const boxes = ".bd-article :is(pre, .output, .pst-scrollable-table-container)";
  const reach = new ResizeObserver((changes) => changes.forEach(({ target }) => {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
  }));
  addEventListener("load", () => document.querySelectorAll(boxes).forEach((box) => reach.observe(box)));
})();
