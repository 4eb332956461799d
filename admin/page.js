// The page is complete without this script, which keeps it up to date.
"use strict";
(() => {
  const live = document.getElementById("live"), pause = document.getElementById("pause"), filter = document.getElementById("filter");
  let source = null, paused = false, last = 0, again = 0;

  const say = (text, state) => {
    live.className = "live " + state;
    if (live.textContent !== text) live.textContent = text;
  };

  // morph makes the children of old those of fresh, and keeps the elements that stay: with their focus, and open if they are.
  const keyOf = (node) => (node.nodeType === 1 && (node.dataset.key || node.id)) || null;
  const morph = (old, fresh) => {
    const keyed = new Map();
    for (const node of old.childNodes) if (keyOf(node)) keyed.set(keyOf(node), node);
    let at = old.firstChild;
    for (const want of [...fresh.childNodes]) {
      const key = keyOf(want);
      let have = key ? keyed.get(key) : at;
      if (key && have) {
        if (have !== at) old.insertBefore(have, at);
        else at = at.nextSibling;
        keyed.delete(key);
      } else if (!key && have && have.nodeName === want.nodeName && !keyOf(have)) {
        at = at.nextSibling;
      } else {
        old.insertBefore(want, at);
        continue;
      }
      same(have, want);
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  };
  const same = (have, want) => {
    if (have.nodeType !== 1) {
      if (have.nodeValue !== want.nodeValue) have.nodeValue = want.nodeValue;
      return;
    }
    if (have.isEqualNode(want)) return;
    for (const { name } of [...have.attributes]) {
      if (!want.hasAttribute(name) && name !== "open" && name !== "hidden") have.removeAttribute(name);
    }
    for (const { name, value } of want.attributes) if (have.getAttribute(name) !== value) have.setAttribute(name, value);
    morph(have, want);
  };

  const sift = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const node of document.querySelectorAll("[data-filter]")) {
      const text = node.textContent.toLowerCase();
      node.hidden = !words.every((word) => text.includes(word));
    }
  };

  // A tab in the background, and whoever listens, are told when something else hurts.
  const name = document.title;
  const spoken = document.getElementById("spoken");
  let told = null;
  const tell = () => {
    const list = [...document.querySelectorAll("#hurts .what")].map((what) => what.textContent.replace(/[\s✕▲]+/g, " ").trim());
    const worst = document.querySelector("#hurts .critical") ? "✕ " : list.length ? "▲ " : "";
    document.title = (worst && worst + list.length + " · ") + name;
    const text = list.map((one) => one.replace(/[\d.<]+ %/g, "some")).join("; "); // shares change all the time
    if (told !== null && told !== text) spoken.textContent = list.length ? "What hurts: " + list.join("; ") : "Nothing hurts";
    told = text;
  };

  const show = (event) => {
    last = Date.now();
    if (paused) return;
    const { time, parts } = JSON.parse(event.data);
    const active = document.activeElement;
    for (const [id, html] of Object.entries(parts)) {
      const fresh = document.createElement("template");
      fresh.innerHTML = html; // made and escaped by the server that this page is from
      morph(document.getElementById(id), fresh.content);
    }
    if (filter.value) sift();
    if (active !== document.activeElement && active.isConnected) active.focus({ preventScroll: true }); // it was moved
    if (parts.hurts) tell();
    say("live, " + time + " UTC", "on");
  };

  const open = () => {
    clearTimeout(again);
    source = new EventSource("?events");
    source.onmessage = show;
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
      again = setTimeout(open, 5000);
    };
  };
  const close = () => {
    clearTimeout(again);
    if (source) source.close();
  };

  const toggle = () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", paused);
    pause.textContent = paused ? "Go on" : "Pause";
    if (paused) {
      close();
      say("paused", "off");
    } else open();
  };
  pause.hidden = filter.hidden = false;
  pause.addEventListener("click", toggle);
  filter.addEventListener("input", sift);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === filter) {
      if (event.target === filter && event.key === "Escape") {
        filter.value = "";
        sift();
        filter.blur();
      }
      return;
    }
    if (event.key === "p") toggle();
    if (event.key === "/") {
      event.preventDefault();
      filter.focus();
    }
  });
  const reveal = () => {
    const row = location.hash && document.getElementById(location.hash.slice(1));
    if (row && row.nodeName === "DETAILS") {
      row.open = true;
      row.querySelector("summary").focus({ preventScroll: true });
      row.scrollIntoView({ block: "nearest" });
    }
  };
  addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link && link.hash === location.hash) reveal(); // which is no change of the hash
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => { if (event.persisted && !paused) open(); });
  setInterval(() => {
    if (!paused && last && Date.now() - last > 5000) say("no news for " + Math.round((Date.now() - last) / 1000) + " s", "off");
  }, 1000);
  reveal();
  tell();
  open();
})();
