// Design a schedule: place checkpoints on the timeline of a generation, and see how stale the pairs become between them.
(() => {
  "use strict";
  const box = document.getElementById("@ID");
  const data = JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const part = (name) => box.querySelector(`[data-part="${name}"]`);
  const calls = data.calls;
  const amounts = Object.fromEntries(Object.entries(data.amounts).map(([name, given]) => {
    const bytes = Uint8Array.from(atob(given.staleness), (letter) => letter.charCodeAt(0));
    return [name, { ...given, staleness: Float32Array.from(bytes, (byte) => byte / 255) }]; // [found at, used at]
  }));

  const paths = (staleness, schedule) => { // how stale the pairs are at each step
    let found = 0;
    return Float32Array.from({ length: calls }, (_, step) => {
      if (schedule.has(step)) found = step;
      return staleness[found * calls + step];
    });
  };
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  // The least staleness for every number of checkpoints, by dynamic programming: the best schedule of k checkpoints up to a
  // step is the best one of k - 1 up to an earlier checkpoint, and what is paid from there on.
  const optima = (staleness) => {
    const paid = (from, to) => staleness.subarray(from * calls + from, from * calls + to).reduce((sum, value) => sum + value, 0);
    const between = Array.from({ length: calls }, (_, from) => Float64Array.from({ length: calls + 1 }, (_, to) => (to > from ? paid(from, to) : 0)));
    let least = between[0].slice();
    const cameFrom = [new Int32Array(calls + 1)];
    const found = [least[calls] / calls];
    for (let count = 2; count <= calls; count++) {
      const next = new Float64Array(calls + 1).fill(Infinity);
      const from = new Int32Array(calls + 1);
      for (let to = count; to <= calls; to++) {
        for (let last = count - 1; last < to; last++) {
          const total = least[last] + between[last][to];
          if (total < next[to]) {
            next[to] = total;
            from[to] = last;
          }
        }
      }
      least = next;
      cameFrom.push(from);
      found.push(least[calls] / calls);
    }
    const schedule = (count) => {
      const steps = [];
      let to = calls;
      for (let left = count; left > 1; left--) {
        to = cameFrom[left - 1][to];
        steps.push(to);
      }
      return [0, ...steps.reverse()];
    };
    return { found, schedule };
  };
  Object.values(amounts).forEach((amount) => { amount.best = optima(amount.staleness); });

  const state = { schedule: new Set(data.start), cursor: 1, dragged: null };
  const now = () => amounts[part("amount").value];

  // ---- the timeline: bars of staleness over a row of steps
  const wide = 640;
  const left = 40;
  const step = (wide - left - 8) / calls;
  const bars = { top: 8, bottom: 108 };
  const row = { top: 116, bottom: 142 };
  const at = (x) => Math.min(Math.max(Math.floor((x - left) / step), 0), calls - 1);
  const drawTimeline = () => {
    const stale = paths(now().staleness, state.schedule);
    const shapes = [0, 0.5, 1].map((value) => {
      const y = bars.bottom - value * (bars.bottom - bars.top);
      return `<line x1="${left}" x2="${wide - 8}" y1="${y}" y2="${y}" stroke="currentColor" opacity="0.15"/>`
        + `<text x="${left - 6}" y="${y + 4}" text-anchor="end">${value}</text>`;
    });
    for (let i = 0; i < calls; i++) {
      const x = left + i * step;
      const height = stale[i] * (bars.bottom - bars.top);
      const placed = state.schedule.has(i);
      shapes.push(`<rect x="${x + 1}" y="${bars.bottom - height}" width="${step - 2}" height="${height}" fill="#de8f05"/>`);
      shapes.push(`<rect x="${x + 1}" y="${row.top}" width="${step - 2}" height="${row.bottom - row.top}" rx="2" `
        + `fill="${placed ? "#0173b2" : "transparent"}" stroke="${placed ? "#0173b2" : "currentColor"}" stroke-opacity="${placed ? 1 : 0.45}"/>`);
      if (i % 10 === 0) shapes.push(`<text x="${x + step / 2}" y="${row.bottom + 15}" text-anchor="middle">${i}</text>`);
    }
    const x = left + state.cursor * step;
    shapes.push(`<rect data-part="cursor" x="${x - 1}" y="${row.top - 3}" width="${step + 2}" height="${row.bottom - row.top + 6}" rx="3" fill="none" stroke="#d55e00" stroke-width="2.5"/>`);
    shapes.push(`<text x="${(left + wide) / 2}" y="${row.bottom + 32}" text-anchor="middle">step (blue: pairs are found here); orange: share of pairs that are stale</text>`);
    part("timeline").innerHTML = shapes.join("");
  };

  // ---- all numbers of checkpoints: the least staleness, the schedules of the chapter, and yours
  const field = { left: 52, right: 612, top: 10, bottom: 176 };
  const drawField = () => {
    const amount = now();
    const most = 26; // beyond so many checkpoints little changes
    const top = Math.max(...amount.schedules.map((one) => one.staleness), amount.best.found[3]) * 1.15;
    const x = (count) => field.left + ((Math.min(count, most) - 1) / (most - 1)) * (field.right - field.left);
    const y = (value) => field.bottom - (Math.min(value, top) / top) * (field.bottom - field.top);
    const shapes = [1, 5, 10, 15, 20, 25].map((count) => `<text x="${x(count)}" y="${field.bottom + 16}" text-anchor="middle">${count}</text>`);
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      const value = share * top;
      shapes.push(`<line x1="${field.left}" x2="${field.right}" y1="${y(value)}" y2="${y(value)}" stroke="currentColor" opacity="0.15"/>`
        + `<text x="${field.left - 6}" y="${y(value) + 4}" text-anchor="end">${value.toFixed(2)}</text>`);
    }
    shapes.push(`<text x="${(field.left + field.right) / 2}" y="${field.bottom + 34}" text-anchor="middle">checkpoints</text>`);
    shapes.push(`<text transform="translate(12 ${(field.top + field.bottom) / 2}) rotate(-90)" text-anchor="middle">mean staleness</text>`);
    const points = amount.best.found.slice(0, most).map((value, i) => `${x(i + 1)},${y(value)}`).join(" ");
    shapes.push(`<polyline points="${points}" fill="none" stroke="#029e73" stroke-width="2"/>`);
    amount.schedules.forEach((one) => shapes.push(`<circle cx="${x(one.steps.length)}" cy="${y(one.staleness)}" r="4" fill="#0173b2"><title>${one.name}</title></circle>`));
    const own = mean(paths(amount.staleness, state.schedule));
    shapes.push(`<circle cx="${x(state.schedule.size)}" cy="${y(own)}" r="7" fill="none" stroke="#cc3311" stroke-width="3"/>`);
    part("field").innerHTML = shapes.join("");
  };

  const show = () => {
    drawTimeline();
    drawField();
    const amount = now();
    const count = state.schedule.size;
    const own = mean(paths(amount.staleness, state.schedule));
    const rival = amount.schedules.find((one) => one.name === data.rival);
    const { intercept, slope, spread } = amount.quality;
    const { fixed, each } = amount.time;
    const expected = intercept + slope * own;
    const beaten = rival && count <= rival.steps.length && own < rival.staleness - 5e-4;
    part("says").innerHTML = `<b>${count}</b> checkpoint${count === 1 ? "" : "s"}, mean staleness <b>${own.toFixed(3)}</b>; the least possible with ${count} is `
      + `<b>${amount.best.found[count - 1].toFixed(3)}</b>. Expected PSNR <b>${(expected - 2 * spread).toFixed(1)} to ${(expected + 2 * spread).toFixed(1)} dB</b>, `
      + `time <b>${(fixed + each * count).toFixed(2)}</b> of the unmerged one.`
      + (rival ? ` ${rival.name}: ${rival.steps.length} checkpoints, ${rival.staleness.toFixed(3)}.${beaten ? " <b>You have beaten it.</b>" : ""}` : "");
    part("steps").textContent = [...state.schedule].sort((a, b) => a - b).join(", ");
    box.dataset.ready = [count, own, amount.best.found[count - 1]].join(" ");
  };

  const said = () => {
    const placed = state.schedule.has(state.cursor) ? "a checkpoint" : "no checkpoint";
    part("timeline").setAttribute("aria-label", `Timeline of ${calls} steps. Step ${state.cursor}: ${placed}. Left and right choose a step, `
      + "the space bar places or removes a checkpoint, shift with left or right moves one.");
  };
  const change = (make) => {
    make();
    state.schedule.add(0); // there are no pairs before the first step
    said();
    show();
  };
  const toggle = (i) => (state.schedule.has(i) ? state.schedule.delete(i) : state.schedule.add(i));
  const move = (from, to) => {
    if (from === 0 || to === from || state.schedule.has(to)) return;
    state.schedule.delete(from);
    state.schedule.add(to);
  };

  const timeline = part("timeline");
  const under = (event) => {
    const area = timeline.getBoundingClientRect();
    return at(((event.clientX - area.left) / area.width) * wide);
  };
  timeline.addEventListener("pointerdown", (event) => {
    const i = under(event);
    state.cursor = i;
    state.moved = false;
    state.dragged = state.schedule.has(i) ? i : null;
    state.pressed = i;
    timeline.setPointerCapture(event.pointerId);
    change(() => {});
  });
  timeline.addEventListener("pointermove", (event) => {
    if (state.dragged === null || state.dragged === undefined) return;
    const i = under(event);
    if (i === state.dragged || state.dragged === 0 || state.schedule.has(i)) return;
    state.moved = true;
    change(() => move(state.dragged, i));
    state.dragged = i;
    state.cursor = i;
    drawTimeline();
  });
  timeline.addEventListener("pointerup", (event) => {
    const i = under(event);
    if (!state.moved && i === state.pressed) change(() => toggle(i));
    state.dragged = null;
    state.pressed = null;
  });
  timeline.addEventListener("pointercancel", () => { state.dragged = null; });
  timeline.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) {
      event.preventDefault();
      const to = Math.min(Math.max(state.cursor + by, 0), calls - 1);
      change(() => {
        if (event.shiftKey && state.schedule.has(state.cursor)) move(state.cursor, to);
        state.cursor = to;
      });
    } else if (event.key === " " || event.key === "Enter") {
      event.preventDefault();
      change(() => toggle(state.cursor));
    }
  });
  part("amount").addEventListener("input", () => change(() => {}));
  part("known").addEventListener("input", () => {
    const chosen = now().schedules.find((one) => one.name === part("known").value);
    if (chosen) change(() => { state.schedule = new Set(chosen.steps); });
    part("known").value = "";
  });
  part("best").addEventListener("click", () => change(() => { state.schedule = new Set(now().best.schedule(state.schedule.size)); }));
  part("even").addEventListener("click", () => change(() => {
    const count = state.schedule.size;
    state.schedule = new Set(Array.from({ length: count }, (_, i) => Math.round((i * calls) / count)));
  }));
  part("clear").addEventListener("click", () => change(() => { state.schedule = new Set([0]); }));
  change(() => {});
})();
