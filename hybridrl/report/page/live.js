"use strict";
(() => {
  const state = document.getElementById("live");
  let version = document.body.dataset.version;
  const names = (part) => [...part.querySelectorAll("details")].map((one) => one.open);
  const replace = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const main = document.getElementById("main");
    const open = names(main);
    const at = window.scrollY;
    const focused = document.activeElement && document.activeElement.id;
    for (const part of ["h1", "nav", "main"]) {
      const from = fresh.querySelector(part);
      const to = document.querySelector(part);
      if (from && to) to.innerHTML = from.innerHTML;
    }
    document.title = fresh.title;
    const all = main.querySelectorAll("details");
    if (all.length === open.length) all.forEach((one, i) => { one.open = open[i]; });
    window.hybridrlReport(main);
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    window.scrollTo(0, at);
  };
  const ask = async () => {
    try {
      const now = await (await fetch("version")).text();
      if (now !== version) {
        const answer = await fetch("./");
        if (!answer.ok) throw new Error(answer.status);
        replace(await answer.text());
        version = now;
      }
      state.textContent = "live";
    } catch {
      state.textContent = "not served any more";
    }
    setTimeout(ask, 2000);
  };
  setTimeout(ask, 2000);
})();
