// Keeps a page true while somebody looks at it: times tick, and parts that changed are sent by the worker as HTML.
"use strict";

(() => {
  const live = document.getElementById("live");
  const events = document.body.dataset.events;
  let skew = Number(document.documentElement.dataset.now) - Date.now(); // the worker's clock is the one that counts
  let source = null;
  let over = false;
  let patience = 0;

  // -- times, in the words of words.py

  function span(seconds) {
    const whole = Math.max(0, Math.floor(seconds));
    if (whole < 60) return `${whole} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
    return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
  }

  function relative(seconds) {
    const whole = Math.floor(Math.abs(seconds));
    if (whole < 2) return "just now";
    let text = `${Math.floor(whole / 86400)} days`;
    if (whole < 60) text = `${whole} s`;
    else if (whole < 3600) text = `${Math.floor(whole / 60)} min`;
    else if (whole < 172800) text = `${Math.floor(whole / 3600)} h`;
    return seconds > 0 ? `${text} ago` : `in ${text}`;
  }

  function tick() {
    const now = Date.now() + skew;
    for (const element of document.querySelectorAll("time[data-ago], time[data-elapsed]")) {
      const seconds = (now - Date.parse(element.dateTime)) / 1000;
      const text = "ago" in element.dataset ? relative(seconds) : span(seconds);
      if (element.textContent !== text) element.textContent = text;
    }
  }

  // -- parts: what is there is made like what is to be there, so that focus, selection and scrolling stay

  function alike(from, to) {
    return from.nodeType === to.nodeType && from.nodeName === to.nodeName && (from.id || "") === (to.id || "");
  }

  function morph(from, to) {
    if (from.nodeType !== Node.ELEMENT_NODE) {
      if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
      return;
    }
    for (const { name } of [...from.attributes]) if (!to.hasAttribute(name)) from.removeAttribute(name);
    for (const { name, value } of to.attributes) if (from.getAttribute(name) !== value) from.setAttribute(name, value);
    if (from.nodeName === "TIME" && (("ago" in to.dataset) || ("elapsed" in to.dataset))) return;
    morphInside(from, to);
  }

  function morphInside(from, to) {
    const kept = new Set([...to.childNodes].map((node) => node.id).filter(Boolean));
    let place = from.firstChild;
    for (const wanted of [...to.childNodes]) {
      let found = place;
      if (wanted.id) {
        while (found && found.id !== wanted.id) found = found.nextSibling;
      }
      if (found && alike(found, wanted)) {
        while (place !== found && !kept.has(place.id)) place = dropped(place);
        if (found !== place) from.insertBefore(found, place);
        else place = place.nextSibling;
        morph(found, wanted);
      } else {
        from.insertBefore(wanted, place);
        if (place && !place.id && !wanted.id) place = dropped(place);
      }
    }
    while (place) place = dropped(place);
  }

  function dropped(node) {
    const next = node.nextSibling;
    node.remove();
    return next;
  }

  function show(name, html) {
    const element = document.getElementById(name);
    if (!element) return;
    const followed = [...element.querySelectorAll("[data-follow]")].filter(
      (one) => one.scrollHeight > one.clientHeight && one.scrollTop + one.clientHeight > one.scrollHeight - 4,
    );
    const focused = document.activeElement;
    morphInside(element, new DOMParser().parseFromString(html, "text/html").body);
    for (const one of followed) one.scrollTop = one.scrollHeight;
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  }

  // -- the stream

  function say(state, text) {
    if (!live) return;
    live.dataset.state = state;
    const label = live.querySelector(".text");
    if (label.textContent !== text) label.textContent = text;
  }

  function open() {
    if (!events || source || over || document.hidden) return;
    source = new EventSource(events);
    source.addEventListener("parts", (event) => {
      const sent = JSON.parse(event.data);
      skew = sent.now - Date.now();
      for (const [name, html] of Object.entries(sent.parts)) show(name, html);
      tick();
      clearTimeout(patience);
      patience = 0;
      say("live", "Live");
    });
    source.addEventListener("problem", () => say("lost", "Database away"));
    source.addEventListener("last", () => {
      over = true;
      close();
      say("over", "Ended");
    });
    source.addEventListener("error", () => {
      // A stream ends now and then, and comes back by itself at once: only an absence is worth a word.
      if (!patience) patience = setTimeout(() => say("lost", "Reconnecting"), 4000);
      if (source && source.readyState === EventSource.CLOSED) {
        close();
        say("lost", "Not live");
        setTimeout(open, 30000);
      }
    });
  }

  function close() {
    if (source) source.close();
    source = null;
    clearTimeout(patience);
    patience = 0;
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);

  for (const one of document.querySelectorAll("[data-follow]")) one.scrollTop = one.scrollHeight;
  tick();
  setInterval(tick, 1000);
  open();
})();
