// A blind test: which of two images is the unmerged one?
(() => {
  "use strict";
  const box = document.getElementById("@ID");
  const data = JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const part = (name) => box.querySelector(`[data-part="${name}"]`);
  const answers = box.querySelectorAll("[data-answer]");

  const shuffled = (list) => {
    const cards = [...list];
    for (let i = cards.length - 1; i > 0; i--) {
      const j = Math.floor(Math.random() * (i + 1));
      [cards[i], cards[j]] = [cards[j], cards[i]];
    }
    return cards;
  };
  const state = {};
  const start = () => {
    // every scene comes once, lest its unmerged image be known already
    const scenes = shuffled(data.scenes.keys()).slice(0, data.rounds);
    const methods = shuffled(data.methods.keys());
    state.rounds = scenes.map((scene, i) => ({ scene, method: methods[i % methods.length] }));
    state.at = 0;
    state.answers = [];
    ask();
  };
  const ask = () => {
    const { scene, method } = state.rounds[state.at];
    state.first = Math.random() < 0.5; // the unmerged image stands first
    const pair = [data.scenes[scene].plain, data.scenes[scene].images[method]];
    if (!state.first) pair.reverse();
    part("a").src = pair[0];
    part("b").src = pair[1];
    part("a").alt = `first image of ${data.scenes[scene].name}`;
    part("b").alt = `second image of ${data.scenes[scene].name}`;
    part("says").innerHTML = `Pair <b>${state.at + 1}</b> of ${state.rounds.length}: which one is <b>unmerged</b>?`;
    answers.forEach((button) => { button.disabled = false; });
    part("next").hidden = true;
    box.dataset.ready = `ask ${state.at}`;
  };
  const answer = (given) => {
    const { scene, method } = state.rounds[state.at];
    const truth = state.first ? "a" : "b";
    const right = given === "neither" ? null : given === truth;
    state.answers.push({ scene, method, right });
    answers.forEach((button) => { button.disabled = true; });
    const psnr = data.scenes[scene].psnr[method].toFixed(1);
    const verdict = right === null ? "You saw no difference." : right ? "Right." : "Wrong.";
    part("says").innerHTML = `<b>${verdict}</b> The ${state.first ? "first" : "second"} one is unmerged. The other was made by <b>${data.methods[method]}</b>, `
      + `at ${psnr} dB.`;
    part("next").textContent = state.at + 1 < state.rounds.length ? "next pair" : "my score";
    part("next").hidden = false;
    part("next").focus();
    box.dataset.ready = `answered ${state.at}`;
  };
  const score = () => {
    const rows = data.methods.map((name, m) => {
      const given = state.answers.filter((one) => one.method === m);
      const right = given.filter((one) => one.right).length;
      const unsure = given.filter((one) => one.right === null).length;
      const psnr = data.scenes.map((scene) => scene.psnr[m]);
      return `<tr><th scope="row">${name}</th><td>${given.length}</td><td>${right}</td><td>${unsure}</td><td>${Math.min(...psnr).toFixed(1)} to ${Math.max(...psnr).toFixed(1)}</td></tr>`;
    });
    const right = state.answers.filter((one) => one.right).length;
    const guessed = state.answers.filter((one) => one.right !== null).length;
    part("says").innerHTML = `<b>${right}</b> of ${guessed} answers were right; guessing would have given ${(guessed / 2).toFixed(1)}.`
      + `<table><thead><tr><th>method</th><th>pairs</th><th>right</th><th>no difference seen</th><th>PSNR (dB)</th></tr></thead><tbody>${rows.join("")}</tbody></table>`;
    part("next").textContent = "again";
    box.dataset.ready = `score ${right} ${guessed}`;
    state.at = -1;
  };
  answers.forEach((button) => button.addEventListener("click", () => answer(button.dataset.answer)));
  part("next").addEventListener("click", () => {
    if (state.at === -1) start();
    else if (state.at + 1 < state.rounds.length) {
      state.at += 1;
      ask();
    } else score();
  });
  start();
})();
