// Where the time goes: the least time of a U-Net call by the roofline, part by part, without merging and with it.
(() => {
  "use strict";
  const box = document.getElementById("@ID");
  const data = JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const part = (name) => box.querySelector(`[data-part="${name}"]`);
  const wide = 640;
  const left = 74;
  const right = 560;

  const show = () => {
    const size = data.sizes[part("size").valueAsNumber];
    const share = data.shares[part("share").valueAsNumber];
    part("size-value").textContent = `${size} px`;
    part("share-value").textContent = `${Math.round(100 * share)} %`;
    const known = (device) => [part("model").value, device, part("attention").value, size].join("|") in data.seconds;
    const devices = [...part("device").options];
    devices.forEach((option) => { option.disabled = !known(option.value); });
    if (!known(part("device").value)) part("device").value = devices.find((option) => known(option.value)).value;
    const found = data.seconds[[part("model").value, part("device").value, part("attention").value, size].join("|")];
    const before = found[0];
    const after = found[part("share").valueAsNumber];
    const total = (seconds) => seconds.reduce((sum, value) => sum + value, 0);
    const whole = total(before);
    const attention = (before[0] + before[1]) / whole; // with its projections: merging leaves fewer tokens to both
    const gone = Math.max(before[0] + before[1] - after[0] - after[1], 0);
    const bound = whole / (whole - gone); // Amdahl's law: merging itself costs nothing
    const limit = 1 / (1 - attention); // and no attention is left at all
    const scale = (right - left) / Math.max(whole, total(after));
    const shapes = [];
    [["unmerged", before, 8], ["merged", after, 62]].forEach(([name, seconds, y]) => {
      let x = left;
      shapes.push(`<text x="${left - 8}" y="${y + 24}" text-anchor="end">${name}</text>`);
      seconds.forEach((value, i) => {
        shapes.push(`<rect x="${x}" y="${y}" width="${value * scale}" height="38" fill="${data.colours[i]}"><title>${data.parts[i]}: ${(1000 * value).toPrecision(3)} ms</title></rect>`);
        x += value * scale;
      });
      shapes.push(`<text x="${x + 6}" y="${y + 24}">${(1000 * total(seconds)).toPrecision(3)} ms</text>`);
    });
    part("bars").innerHTML = shapes.join("");
    part("says").innerHTML = `The topmost self-attentions, with their projections, take <b>${Math.round(100 * attention)} %</b> of the least time. With ${Math.round(100 * share)} % merged, a call `
      + `becomes at most <b>${bound.toFixed(2)}×</b> as fast, and <b>${(whole / total(after)).toFixed(2)}×</b> with what merging itself moves and computes. `
      + `If they took no time at all, it would be ${limit.toFixed(2)}×: that is Amdahl's limit.`;
    box.dataset.ready = [attention, bound, whole / total(after), limit].join(" ");
  };
  box.querySelectorAll("select, input").forEach((input) => input.addEventListener("input", show));
  show();
})();
