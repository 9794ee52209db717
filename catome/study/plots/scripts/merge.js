// Merge it yourself: one self-attention of a real model, computed in the page on the tokens of a real image.
(() => {
  "use strict";
  const box = document.getElementById("@ID");
  const data = JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const part = (name) => box.querySelector(`[data-part="${name}"]`);
  const [height, width] = data.grid;
  const tokens = height * width;
  const channels = data.query.shape[0];
  const heads = data.heads;
  const size = 8; // pixels of a token in a canvas

  // arrays come as whole numbers of eight bits, with a scale for each column
  const decoded = ({ shape, scale, values }) => {
    const bytes = Uint8Array.from(atob(values), (letter) => letter.charCodeAt(0));
    const whole = new Int8Array(bytes.buffer);
    return Float32Array.from(whole, (value, i) => value * scale[i % shape[1]]);
  };

  const product = (a, b, rows) => { // [rows, C] times [C, C]
    const out = new Float32Array(rows * channels);
    for (let i = 0; i < rows; i++) {
      for (let k = 0; k < channels; k++) {
        const factor = a[i * channels + k];
        for (let j = 0; j < channels; j++) out[i * channels + j] += factor * b[k * channels + j];
      }
    }
    return out;
  };

  const normed = (x) => { // the block's layer norm
    const out = new Float32Array(x.length);
    for (let i = 0; i < tokens; i++) {
      const row = x.subarray(i * channels, (i + 1) * channels);
      const mean = row.reduce((sum, value) => sum + value, 0) / channels;
      const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / channels;
      const factor = 1 / Math.sqrt(variance + data.epsilon);
      for (let j = 0; j < channels; j++) out[i * channels + j] = (row[j] - mean) * factor * data.gain[j] + data.shift[j];
    }
    return out;
  };

  const matrices = Object.fromEntries(["query", "key", "value", "output"].map((name) => [name, decoded(data[name])]));

  // softmax(q kᵀ / √d + bias) of one query, for each head: [heads, keys]
  const weightsOf = (q, query, k, keys, bias) => {
    const wide = channels / heads;
    const weights = new Float32Array(heads * keys);
    for (let head = 0; head < heads; head++) {
      let most = -Infinity;
      const at = head * wide;
      for (let j = 0; j < keys; j++) {
        let score = 0;
        for (let c = at; c < at + wide; c++) score += q[query * channels + c] * k[j * channels + c];
        score = score / Math.sqrt(wide) + bias[j];
        weights[head * keys + j] = score;
        if (score > most) most = score;
      }
      let sum = 0;
      for (let j = head * keys; j < (head + 1) * keys; j++) sum += weights[j] = Math.exp(weights[j] - most);
      for (let j = head * keys; j < (head + 1) * keys; j++) weights[j] /= sum;
    }
    return weights;
  };

  const attended = (q, queries, k, v, keys, bias) => { // what attention adds to each query's token: [queries, C]
    const wide = channels / heads;
    const out = new Float32Array(queries * channels);
    for (let i = 0; i < queries; i++) {
      const weights = weightsOf(q, i, k, keys, bias);
      for (let head = 0; head < heads; head++) {
        for (let j = 0; j < keys; j++) {
          const weight = weights[head * keys + j];
          for (let c = head * wide; c < (head + 1) * wide; c++) out[i * channels + c] += weight * v[j * channels + c];
        }
      }
    }
    return product(out, matrices.output, queries);
  };

  // each src token's most similar dst token: dst is the top-left token of every window
  const matched = (x, edge) => {
    const unit = new Float32Array(x.length);
    for (let i = 0; i < tokens; i++) {
      let square = 0;
      for (let c = 0; c < channels; c++) square += x[i * channels + c] ** 2;
      for (let c = 0; c < channels; c++) unit[i * channels + c] = x[i * channels + c] / Math.sqrt(square);
    }
    const src = [];
    const dst = [];
    for (let i = 0; i < tokens; i++) {
      const first = Math.floor(i / width) % edge === 0 && (i % width) % edge === 0;
      (first ? dst : src).push(i);
    }
    const best = new Int32Array(tokens).fill(-1);
    const similarity = new Float32Array(tokens).fill(-Infinity);
    for (const a of src) {
      for (const b of dst) {
        let cosine = 0;
        for (let c = 0; c < channels; c++) cosine += unit[a * channels + c] * unit[b * channels + c];
        if (cosine > similarity[a]) {
          similarity[a] = cosine;
          best[a] = b;
        }
      }
    }
    return { src, best, similarity };
  };

  const once = (make) => { // keeps what was computed, by its name
    const kept = new Map();
    return (name, ...given) => {
      if (!kept.has(name)) kept.set(name, make(...given));
      return kept.get(name);
    };
  };
  const scene = once((packed) => {
    const x = decoded(packed);
    const n = normed(x);
    return { x, n, q: product(n, matrices.query, tokens), k: product(n, matrices.key, tokens), v: product(n, matrices.value, tokens) };
  });
  const none = new Float32Array(tokens);
  const exact = once((now) => attended(now.q, tokens, now.k, now.v, tokens, none));
  const matches = once(matched);

  const planned = (found, by, amount) => { // which slot each token goes to
    let merged;
    if (by === "threshold") {
      merged = found.src.filter((a) => found.similarity[a] >= amount);
    } else {
      const order = [...found.src].sort((a, b) => found.similarity[b] - found.similarity[a]);
      merged = order.slice(0, Math.floor(amount * tokens));
    }
    const target = Int32Array.from({ length: tokens }, (_, i) => i);
    for (const a of merged) target[a] = found.best[a];
    const kept = [...new Set(target)].sort((a, b) => a - b);
    const slotOf = new Map(kept.map((token, slot) => [token, slot]));
    const slot = target.map((token) => slotOf.get(token));
    const sizes = new Float32Array(kept.length);
    for (const s of slot) sizes[s] += 1;
    return { slot, sizes, left: kept.length, merged: merged.length };
  };

  const meansOf = (values, plan, columns) => {
    const out = new Float32Array(plan.left * columns);
    for (let i = 0; i < tokens; i++) {
      for (let c = 0; c < columns; c++) out[plan.slot[i] * columns + c] += values[i * columns + c] / plan.sizes[plan.slot[i]];
    }
    return out;
  };

  const mergedBy = (now, plan, chosen) => { // queries, keys and values on merged tokens, and what is added to each score
    const means = meansOf(now.n, plan, channels);
    return {
      q: chosen.keep ? now.q : product(means, matrices.query, plan.left),
      k: product(means, matrices.key, plan.left),
      v: product(means, matrices.value, plan.left),
      bias: Float32Array.from(plan.sizes, (count) => (chosen.weigh ? Math.log(count) : 0)),
    };
  };

  const scoresLeft = (plan, chosen) => ((chosen.keep ? tokens : plan.left) * plan.left) / tokens ** 2;

  const measured = (name, now, plan, merged, chosen) => { // squared changes of each token's result, and their root beside all of it
    const whole = exact(name, now);
    const queries = chosen.keep ? tokens : plan.left;
    const result = attended(merged.q, queries, merged.k, merged.v, plan.left, merged.bias);
    const changes = new Float32Array(tokens);
    let change = 0;
    let all = 0;
    for (let i = 0; i < tokens; i++) {
      const row = chosen.keep ? i : plan.slot[i];
      for (let c = 0; c < channels; c++) {
        changes[i] += (result[row * channels + c] - whole[i * channels + c]) ** 2;
        all += whole[i * channels + c] ** 2;
      }
      change += changes[i];
    }
    return { changes, error: Math.sqrt(change / all), all };
  };

  // ---- what is shown

  const shades = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const shade = (value) => {
    const at = Math.min(Math.max(value, 0), 1) * (shades.length - 1);
    const low = Math.min(Math.floor(at), shades.length - 2);
    return shades[low].map((from, c) => Math.round(from + (at - low) * (shades[low + 1][c] - from)));
  };
  const paper = (name) => {
    const canvas = part(name);
    canvas.width = width * size;
    canvas.height = height * size;
    return canvas.getContext("2d");
  };
  const papers = Object.fromEntries(["groups", "before", "after", "change"].map((name) => [name, paper(name)]));
  const fill = (drawn, colour) => {
    for (let i = 0; i < tokens; i++) {
      drawn.fillStyle = `rgb(${colour(i).join(",")})`;
      drawn.fillRect((i % width) * size, Math.floor(i / width) * size, size, size);
    }
  };
  const mark = (drawn, i, colour) => {
    drawn.lineWidth = 2;
    drawn.strokeStyle = colour;
    drawn.strokeRect((i % width) * size + 1, Math.floor(i / width) * size + 1, size - 2, size - 2);
  };

  const state = { token: Math.floor(height / 2) * width + Math.floor(width / 2), timer: 0 };
  const choice = () => {
    const by = part("by").value;
    const amount = part(by === "threshold" ? "threshold" : "share").valueAsNumber;
    return { scene: part("scene").value, step: part("step").value, by, amount, window: Number(part("window").value),
      keep: part("keep").checked, weigh: part("weigh").checked };
  };

  const drawMaps = (now, plan, merged, chosen) => {
    const i = state.token;
    const members = [...plan.slot.keys()].filter((j) => plan.slot[j] === plan.slot[i]);
    const colours = meansOf(now.colours, plan, 3);
    fill(papers.groups, (j) => [...colours.subarray(plan.slot[j] * 3, plan.slot[j] * 3 + 3)]);
    papers.groups.fillStyle = "#fff8";
    for (let j = 0; j < tokens; j++) { // white lines between neighbours of different groups, where something was merged
      const y = Math.floor(j / width);
      const x = j % width;
      const apart = (k) => plan.slot[j] !== plan.slot[k] && (plan.sizes[plan.slot[j]] > 1 || plan.sizes[plan.slot[k]] > 1);
      if (x + 1 < width && apart(j + 1)) papers.groups.fillRect((x + 1) * size - 1, y * size, 1, size);
      if (y + 1 < height && apart(j + width)) papers.groups.fillRect(x * size, (y + 1) * size - 1, size, 1);
    }
    members.forEach((j) => mark(papers.groups, j, "#d55e00"));
    mark(papers.groups, i, "#000");

    const mean = (weights, keys) => Float32Array.from({ length: keys }, (_, j) => {
      let sum = 0;
      for (let head = 0; head < heads; head++) sum += weights[head * keys + j] / heads;
      return sum;
    });
    const before = mean(weightsOf(now.q, i, now.k, tokens, none), tokens);
    const query = chosen.keep ? i : plan.slot[i];
    const slots = mean(weightsOf(merged.q, query, merged.k, plan.left, merged.bias), plan.left);
    const after = Float32Array.from(plan.slot, (slot) => slots[slot] / plan.sizes[slot]); // a group's weight, shared by its members
    const top = Math.max(...before);
    fill(papers.before, (j) => shade(Math.sqrt(before[j] / top)));
    fill(papers.after, (j) => shade(Math.sqrt(after[j] / top)));
    mark(papers.before, i, "#fff");
    mark(papers.after, i, "#fff");
    part("groups").setAttribute("aria-label", `The image's tokens, each in the mean colour of its group. Chosen: row ${Math.floor(i / width) + 1}, `
      + `column ${i % width + 1}, in a group of ${members.length}. The arrow keys choose another one.`);
  };

  const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
  const show = () => {
    clearTimeout(state.timer);
    box.dataset.ready = "";
    const chosen = choice();
    part("threshold").parentElement.hidden = chosen.by !== "threshold";
    part("share").parentElement.hidden = chosen.by === "threshold";
    part(chosen.by === "threshold" ? "threshold-value" : "share-value").textContent = chosen.amount.toFixed(2);
    const name = `${chosen.scene}, ${chosen.step}`;
    const now = scene(name, data.frames[chosen.scene].steps[chosen.step]);
    now.colours = state.colours[chosen.scene];
    const plan = planned(matches(`${name}, ${chosen.window}`, now.x, chosen.window), chosen.by, chosen.amount);
    const merged = mergedBy(now, plan, chosen);
    state.redraw = () => drawMaps(now, plan, merged, chosen);
    state.redraw();
    const scores = scoresLeft(plan, chosen);
    const said = (error) => {
      part("says").innerHTML = `<b>${percent(plan.merged / tokens)}</b> of the tokens are merged; <b>${percent(scores)}</b> of the scores are left to `
        + `compute; what this attention adds to the tokens changes by <b>${error}</b>.`;
    };
    said("…");
    state.timer = setTimeout(() => { // takes some tenths of a second: when the slider has come to rest
      const { changes, error, all } = measured(name, now, plan, merged, chosen);
      fill(papers.change, (i) => shade(Math.sqrt((changes[i] * tokens) / all)));
      said(percent(error));
      note(chosen, scores, error);
      box.dataset.ready = [plan.merged / tokens, scores, error].join(" ");
    }, 60);
  };

  // every measurement leaves a dot: how much is left to compute, and how much the result changes
  const seen = data.colours.map(() => new Map());
  const plot = { left: 52, right: 612, top: 12, bottom: 196, most: 0.5 };
  const across = (scores) => plot.left + scores * (plot.right - plot.left);
  const up = (error) => plot.bottom - (Math.min(error, plot.most) / plot.most) * (plot.bottom - plot.top);
  const drawTrace = () => {
    const lines = [];
    for (const at of [0, 0.1, 0.2, 0.3, 0.4, 0.5]) {
      lines.push(`<line x1="${plot.left}" x2="${plot.right}" y1="${up(at)}" y2="${up(at)}" stroke="currentColor" opacity="0.15"/>`
        + `<text x="${plot.left - 6}" y="${up(at) + 4}" text-anchor="end">${Math.round(100 * at)} %</text>`);
    }
    for (const at of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
      lines.push(`<text x="${across(at)}" y="${plot.bottom + 16}" text-anchor="middle">${Math.round(100 * at)} %</text>`);
    }
    lines.push(`<text x="${(plot.left + plot.right) / 2}" y="${plot.bottom + 34}" text-anchor="middle">scores left to compute</text>`);
    lines.push(`<text transform="translate(12 ${(plot.top + plot.bottom) / 2}) rotate(-90)" text-anchor="middle">change of the result</text>`);
    data.colours.forEach((colour, way) => {
      const dots = [...seen[way].entries()].sort(([a], [b]) => a - b).map(([, [scores, error]]) => [across(scores), up(error)]);
      if (dots.length > 1) lines.push(`<polyline fill="none" stroke="${colour}" stroke-width="2" points="${dots.map((dot) => dot.join(",")).join(" ")}"/>`);
      dots.forEach(([x, y]) => lines.push(`<circle cx="${x}" cy="${y}" r="3.5" fill="${colour}"/>`));
    });
    part("trace").innerHTML = lines.join("");
  };
  const note = (chosen, scores, error) => {
    const here = `${chosen.scene}, ${chosen.step}, ${chosen.window}, ${chosen.by}`;
    if (state.here !== here) seen.forEach((dots) => dots.clear()); // dots of one picture only
    state.here = here;
    seen[2 * chosen.keep + 1 * chosen.weigh].set(chosen.amount, [scores, error]);
    drawTrace();
  };
  const sweep = async () => {
    const most = choice().by === "threshold" ? 1 : 0.75;
    for (let at = 0; at <= 20; at++) {
      const chosen = choice();
      chosen.amount = (most * at) / 20;
      const name = `${chosen.scene}, ${chosen.step}`;
      const now = scene(name, data.frames[chosen.scene].steps[chosen.step]);
      const plan = planned(matches(`${name}, ${chosen.window}`, now.x, chosen.window), chosen.by, chosen.amount);
      note(chosen, scoresLeft(plan, chosen), measured(name, now, plan, mergedBy(now, plan, chosen), chosen).error);
      await new Promise((next) => setTimeout(next)); // the page stays alive
    }
    box.dataset.swept = String(2 * choice().keep + 1 * choice().weigh);
  };

  const pick = (i) => {
    if (i === state.token || i < 0 || i >= tokens) return;
    state.token = i;
    state.redraw();
  };
  const canvas = part("groups");
  const under = (event) => {
    const area = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - area.left) / area.width) * width);
    const y = Math.floor(((event.clientY - area.top) / area.height) * height);
    pick(Math.min(Math.max(y, 0), height - 1) * width + Math.min(Math.max(x, 0), width - 1));
  };
  canvas.addEventListener("pointermove", under);
  canvas.addEventListener("pointerdown", under);
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width };
    if (!(event.key in steps)) return;
    event.preventDefault();
    pick(state.token + steps[event.key]);
  });
  const presets = box.querySelectorAll("button[data-preset]");
  part("sweep").addEventListener("click", sweep);
  box.querySelectorAll("select, input").forEach((input) => input.addEventListener("input", () => {
    presets.forEach((button) => button.setAttribute("aria-pressed", "false"));
    show();
  }));
  presets.forEach((button) => button.addEventListener("click", () => {
    const preset = JSON.parse(button.dataset.preset);
    part("by").value = preset.by;
    part(preset.by).value = preset.amount;
    part("window").value = preset.window;
    part("keep").checked = preset.keep;
    part("weigh").checked = preset.weigh;
    presets.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    show();
  }));

  // the mean colour of the image under each token
  state.colours = {};
  const images = Object.entries(data.frames).map(([name, { image }]) => new Promise((done) => {
    const picture = new Image();
    picture.onload = () => {
      const small = document.createElement("canvas");
      small.width = picture.width;
      small.height = picture.height;
      const drawn = small.getContext("2d", { willReadFrequently: true });
      drawn.drawImage(picture, 0, 0);
      const pixels = drawn.getImageData(0, 0, picture.width, picture.height).data;
      const sums = new Float32Array(tokens * 3);
      for (let p = 0; p < picture.width * picture.height; p++) {
        const y = Math.floor((Math.floor(p / picture.width) * height) / picture.height);
        const x = Math.floor(((p % picture.width) * width) / picture.width);
        for (let c = 0; c < 3; c++) sums[(y * width + x) * 3 + c] += pixels[p * 4 + c];
      }
      const area = (picture.width * picture.height) / tokens;
      state.colours[name] = sums.map((sum) => sum / area);
      done();
    };
    picture.src = image;
  }));
  drawTrace();
  Promise.all(images).then(show);
})();
