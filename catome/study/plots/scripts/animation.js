// How a self-attention runs on merged tokens: match, merge, attend, unmerge, and what is added to the tokens.
(() => {
  "use strict";
  const box = document.getElementById("@ID");
  const data = JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const part = (name) => box.querySelector(`[data-part="${name}"]`);
  const groups = data.groups.flat(); // the group of each token, row by row
  const edge = data.groups.length;
  const count = Math.max(...groups) + 1;
  const sizes = Array.from({ length: count }, (_, group) => groups.filter((one) => one === group).length);
  const dst = Array.from({ length: count }, (_, group) => groups.indexOf(group));
  const spacing = 40;
  const at = (left, i) => [left + (i % edge) * spacing, 62 + Math.floor(i / edge) * spacing];
  const before = (i) => at(30, i);
  const after = (i) => at(490, i);
  const middle = (group) => [320, 62 + (group * 3 * spacing) / (count - 1)];
  const between = ([x, y], [u, v], share) => [x + (u - x) * share, y + (v - y) * share];
  const smooth = (share) => share * share * (3 - 2 * share);
  const within = (moment, from, to) => smooth(Math.min(Math.max((moment - from) / (to - from), 0), 1));

  const circle = ([x, y], radius, colour, more = "") => `<circle cx="${x}" cy="${y}" r="${radius}" fill="${colour}" ${more}/>`;
  const line = ([x, y], [u, v], opacity, wide = 1.5) => `<line x1="${x}" y1="${y}" x2="${u}" y2="${v}" stroke="currentColor" stroke-width="${wide}" opacity="${opacity}"/>`;
  const ring = (place, colour, opacity) => circle(place, 14, "none", `stroke="${colour}" stroke-width="3.5" opacity="${opacity}"`);

  const phases = {
    tome: [
      [0, "Sixteen tokens, four kinds of content."],
      [8, "Match: every token looks for its most similar destination."],
      [25, "Merge: each group becomes its mean."],
      [45, "Attend: four tokens look at each other, instead of sixteen."],
      [60, "Unmerge: every token gets a copy of its group's result."],
      [85, "Add: the result is added to each token as it was. So merged tokens stay different."],
    ],
    keys: [
      [0, "Sixteen tokens, four kinds of content."],
      [8, "Match: every token looks for its most similar destination."],
      [25, "Merge: keys and values become the means of their groups. Every token keeps its own query."],
      [45, "Attend: sixteen tokens look at four keys, each of which counts as often as it has members."],
      [60, "Every token has a result of its own. There is nothing to copy back."],
      [85, "Add: the result is added to each token as it was."],
    ],
  };

  const show = () => {
    const way = part("way").value;
    const moment = part("moment").valueAsNumber;
    const matched = within(moment, 8, 22) * (1 - within(moment, 25, 40));
    const merged = within(moment, 25, 43);
    const attend = within(moment, 45, 52) * (1 - within(moment, 62, 72));
    const back = within(moment, 60, 82);
    const added = within(moment, 85, 98);
    const shapes = [];
    const residual = moment >= 84 ? 1 : 0.25;
    shapes.push(`<path d="M 90 30 C 230 -6, 410 -6, 548 28" fill="none" stroke="currentColor" stroke-width="1.8" stroke-dasharray="5 4" opacity="${residual}"/>`);
    shapes.push(`<text x="320" y="24" text-anchor="middle" opacity="${residual === 1 ? 1 : 0.75}">the tokens as they were</text>`);
    groups.forEach((group, i) => { // the tokens as they were
      shapes.push(circle(before(i), 11, data.colours[group], 'opacity="0.9"'));
      if (matched && dst[group] !== i) shapes.push(line(before(i), before(dst[group]), 0.8 * matched, 2));
    });
    if (attend) {
      if (way === "tome") {
        for (let a = 0; a < count; a++) for (let b = a + 1; b < count; b++) {
          const bend = 26 * (b - a);
          const [x, y] = middle(a);
          const [, v] = middle(b);
          shapes.push(`<path d="M ${x} ${y} Q ${x + bend} ${(y + v) / 2} ${x} ${v}" fill="none" stroke="currentColor" stroke-width="1.8" opacity="${0.7 * attend}"/>`);
        }
      } else {
        groups.forEach((_, i) => dst.forEach((__, group) => shapes.push(line(before(i), middle(group), 0.22 * attend, 1))));
      }
    }
    groups.forEach((group, i) => { // what moves to its group
      if (merged > 0 && merged < 1) shapes.push(circle(between(before(i), middle(group), merged), 9, data.colours[group], 'opacity="0.7"'));
    });
    if (merged === 1) {
      dst.forEach((_, group) => {
        shapes.push(circle(middle(group), 8 + 3 * Math.sqrt(sizes[group]), data.colours[group]));
        if (way === "keys") shapes.push(`<text x="${middle(group)[0] + 20}" y="${middle(group)[1] + 4}">×${sizes[group]}</text>`);
      });
    }
    groups.forEach((group, i) => { // the results
      const start = way === "tome" ? middle(group) : before(i);
      const colour = way === "tome" ? data.colours[group] : data.own[i];
      if (back > 0) shapes.push(ring(between(start, after(i), back), colour, 1));
      if (added > 0) shapes.push(circle(after(i), 9, data.colours[group], `opacity="${added}"`));
    });
    [["tokens", 90], [way === "tome" ? "groups" : "keys and values", 320], ["results", 550]].forEach(([name, x]) => {
      shapes.push(`<text x="${x}" y="226" text-anchor="middle">${name}</text>`);
    });
    part("stage").innerHTML = shapes.join("");
    const words = phases[way].filter(([from]) => moment >= from).at(-1)[1];
    if (part("says").textContent !== words) part("says").textContent = words;
    box.dataset.ready = `${way} ${moment}`;
  };

  let running = null;
  const stop = () => {
    clearInterval(running);
    running = null;
    part("play").textContent = "play";
    part("play").setAttribute("aria-pressed", "false");
  };
  part("play").addEventListener("click", () => {
    if (running) {
      stop();
      return;
    }
    if (part("moment").valueAsNumber >= 100) part("moment").value = 0;
    part("play").textContent = "pause";
    part("play").setAttribute("aria-pressed", "true");
    running = setInterval(() => {
      part("moment").value = part("moment").valueAsNumber + 1;
      show();
      if (part("moment").valueAsNumber >= 100) stop();
    }, 110);
  });
  part("moment").addEventListener("input", () => {
    stop();
    show();
  });
  part("way").addEventListener("input", show);
  show();
})();
