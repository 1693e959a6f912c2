"use strict";
// One item's form. Every change goes into a queue in localStorage first and leaves it only when
// the server has answered that it is on disk, so a dead server or a closed lid loses nothing.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const words = data.words, answer = data.answer;
  const byId = (id) => document.getElementById(id);
  const slot = `cbtqa:${data.study}:${data.rater}`;
  const IDLE_S = 60, RETRY_S = [1, 2, 4, 8, 15];
  let memory = null;  // stands in where the browser allows no storage

  // --- the queue --------------------------------------------------------------------------------
  const readQueue = () => {
    if (memory) return memory;
    try { return JSON.parse(localStorage.getItem(slot) || "[]"); } catch { return []; }
  };
  const writeQueue = (queue) => {
    try {
      if (queue.length) localStorage.setItem(slot, JSON.stringify(queue)); else localStorage.removeItem(slot);
      memory = null;
    } catch { memory = queue; }
  };
  const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

  // The link was opened again in another tab, which made a new token. It is fetched without a
  // reload: a key pressed while a page loads would be lost. False where there is no newer one.
  const renewToken = async () => {
    try {
      const page = await fetch(location.pathname, { credentials: "same-origin", cache: "no-store" });
      const fresh = JSON.parse(new DOMParser().parseFromString(await page.text(), "text/html").getElementById("data").textContent);
      if (fresh.study !== data.study || fresh.rater !== data.rater || fresh.csrf === data.csrf) return false;
      data.csrf = fresh.csrf;
      return true;
    } catch { return false; }
  };
  let isLeaving = false, isSending = false, failures = 0, timer = 0, isDead = false;
  const show = (state) => {
    byId("state").className = `state ${state}`;
    byId("state").textContent = words[state];
    const isOff = state === "unsaved";
    byId("banner").hidden = !isOff;
    if (isOff) byId("banner-text").textContent = isDead ? words.link_dead : words.unsaved_note.replace("{count}", readQueue().length);
  };
  const fail = () => {
    show("unsaved");
    clearTimeout(timer);
    timer = setTimeout(flush, 1000 * RETRY_S[Math.min(failures++, RETRY_S.length - 1)]);
    return false;
  };
  const settle = (reply) => {
    const settled = new Set(reply.settled);
    writeQueue(readQueue().filter((change) => !settled.has(change.key)));
    byId("progress").textContent = words.progress.replace("{done}", reply.done).replace("{total}", reply.total);
    byId("bar").value = reply.done;
    const refusal = reply.refused[0];
    byId("problem").hidden = !refusal;
    if (refusal) byId("problem").textContent = words.refused.replace("{detail}", `${refusal.field}: ${refusal.detail}`);
  };
  async function flush() {
    const queue = readQueue();
    if (isSending) return false;
    if (!queue.length) { show("saved"); return true; }
    isSending = true;
    if (!failures) show("saving");
    let reply = null, status = 0;
    try {
      const response = await fetch("/save", {
        method: "POST", credentials: "same-origin", cache: "no-store",
        headers: { "Content-Type": "application/json", "X-CSRF-Token": data.csrf },
        body: JSON.stringify({ changes: queue.slice(0, 200) }),
        signal: AbortSignal.timeout ? AbortSignal.timeout(15000) : undefined,
      });
      status = response.status;
      if (response.ok) reply = await response.json();
    } catch { reply = null; }
    const isRenewed = status === 403 && await renewToken();
    isSending = false;
    if (isRenewed) return flush();
    isDead = status === 401 || status === 403;
    if (!reply) return fail();
    failures = 0;
    settle(reply);
    return flush();
  }

  // --- active time ------------------------------------------------------------------------------
  let seconds = 0, lastInput = Date.now();
  for (const kind of ["pointerdown", "pointermove", "keydown", "scroll", "touchstart"])
    addEventListener(kind, () => { lastInput = Date.now(); }, { passive: true, capture: true });
  setInterval(() => {
    const isAway = document.hidden || byId("pause").open || Date.now() - lastInput > IDLE_S * 1000;
    if (!isAway) seconds += 1;
  }, 1000);

  const change = (field, value) => {
    const queue = readQueue();
    queue.push({ key: newKey(), code: data.code, field, value, seconds });
    seconds = 0;
    writeQueue(queue);
    show(failures ? "unsaved" : "saving");
    flush();
  };

  // --- the form ---------------------------------------------------------------------------------
  const blocks = [...document.querySelectorAll(".criterion")];
  const scales = blocks.filter((block) => block.tagName === "FIELDSET");
  const known = Object.fromEntries(data.criteria.map((criterion) => [criterion.id, criterion]));
  const marks = data.criteria.filter((criterion) => criterion.kind === "mark").map((criterion) => criterion.id);
  let current = 0;
  const isOpen = (id) => answer.values[id] === null || answer.values[id] === undefined;
  const isDone = () => answer.cannot_judge || (data.criteria.every((criterion) => criterion.kind === "mark" || !criterion.required || !isOpen(criterion.id))
    && (!marks.length || marks.some((id) => answer.values[id] === 1)));

  const paint = () => {
    blocks.forEach((block) => {
      const id = block.dataset.criterion, value = answer.values[id];
      block.querySelectorAll(".choice").forEach((button) => {
        const isChosen = value !== null && value !== undefined && Number(button.dataset.value) === value;
        button.setAttribute(button.getAttribute("role") === "radio" ? "aria-checked" : "aria-pressed", String(isChosen));
      });
      const input = block.querySelector("input[data-evidence]");
      if (input && document.activeElement !== input) input.value = answer.evidence[id] || "";
      if (input && known[id].kind === "mark") block.querySelector(".quote").hidden = value !== 1;
    });
    scales.forEach((block, place) => block.classList.toggle("current", place === current));
    byId("cannot_judge").setAttribute("aria-pressed", String(answer.cannot_judge));
    byId("crisis").setAttribute("aria-pressed", String(answer.crisis));
    byId("form").classList.toggle("set-aside", answer.cannot_judge);
    if (document.activeElement !== byId("note")) byId("note").value = answer.note;
    byId("next").classList.toggle("ready", isDone());
  };
  const goTo = (place) => {
    current = Math.max(0, Math.min(scales.length - 1, place));
    paint();
    if (scales[current]) scales[current].scrollIntoView({ block: "nearest" });
  };
  const setEvidence = (id, text) => {
    if ((answer.evidence[id] || "") === text) return;
    answer.evidence[id] = text;
    change(`evidence:${id}`, text || null);
  };
  const selectedText = () => {
    const selection = getSelection();
    const isInside = selection.rangeCount && byId("text").contains(selection.getRangeAt(0).commonAncestorContainer);
    return isInside ? selection.toString().trim() : "";
  };
  const rate = (id, value) => {
    answer.values[id] = value;
    change(`value:${id}`, value);
    const place = scales.findIndex((block) => block.dataset.criterion === id);
    const next = scales.findIndex((block, i) => i > place && isOpen(block.dataset.criterion));
    if (place >= 0) goTo(next >= 0 ? next : place); else paint();
  };
  const toggleMark = (id) => {
    const isOn = answer.values[id] === 1;
    const clear = (other) => { if (answer.values[other] === 1) { answer.values[other] = null; change(`value:${other}`, null); } };
    if (!isOn) marks.filter((other) => other !== id && (id === "none" || other === "none")).forEach(clear);
    const quoted = known[id].evidence && !isOn ? selectedText() : "";
    rate(id, isOn ? null : 1);
    if (isOn) setEvidence(id, ""); else if (quoted) setEvidence(id, quoted);
    paint();
  };
  const toggle = (name) => { answer[name] = !answer[name]; change(name, answer[name]); paint(); };

  blocks.forEach((block) => {
    const id = block.dataset.criterion;
    block.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.dataset.take) { setEvidence(id, selectedText() || answer.evidence[id] || ""); paint(); }
      else if (known[id].kind === "mark") toggleMark(id);
      else rate(id, Number(button.dataset.value));
    });
    block.addEventListener("focusin", () => { const place = scales.indexOf(block); if (place >= 0) { current = place; paint(); } });
    const input = block.querySelector("input[data-evidence]");
    if (input) input.addEventListener("change", () => setEvidence(id, input.value.trim()));
  });
  // a click on a button would drop the selection in the text before it is read
  document.querySelectorAll(".take, .mark .choice").forEach((button) => button.addEventListener("mousedown", (event) => event.preventDefault()));
  byId("cannot_judge").addEventListener("click", () => toggle("cannot_judge"));
  byId("crisis").addEventListener("click", () => toggle("crisis"));
  const keepNote = () => {
    const text = byId("note").value.trim();
    if (text !== answer.note) { answer.note = text; change("note", text || null); }
  };
  let noteTimer = 0;
  byId("note").addEventListener("input", () => { clearTimeout(noteTimer); noteTimer = setTimeout(keepNote, 800); });
  byId("note").addEventListener("change", keepNote);
  byId("form").addEventListener("submit", (event) => event.preventDefault());

  // --- moving -----------------------------------------------------------------------------------
  const leave = async (address) => {
    if (document.activeElement && document.activeElement.blur) document.activeElement.blur();
    keepNote();
    while (isSending) await new Promise((done) => setTimeout(done, 30));
    if (readQueue().length && !(await flush())) { byId("banner-text").textContent = words.stay; return; }
    isLeaving = true;
    location.assign(address);
  };
  byId("next").addEventListener("click", () => leave(data.next));
  byId("previous").addEventListener("click", () => leave(data.previous));
  byId("open-guide").addEventListener("click", () => byId("guide").showModal());
  byId("open-pause").addEventListener("click", () => byId("pause").showModal());
  byId("download-unsaved").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify({ study: data.study, rater: data.rater, changes: readQueue() }, null, 1)], { type: "application/json" }));
    link.download = `${data.study}-${data.rater}-unsaved.json`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  addEventListener("beforeunload", (event) => { if (readQueue().length && !isLeaving) event.preventDefault(); });
  addEventListener("online", flush);
  addEventListener("pagehide", keepNote);
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  // --- keys -------------------------------------------------------------------------------------
  const markOfKey = Object.fromEntries(Object.entries(data.mark_keys).map(([id, key]) => [key, id]));
  const rateByDigit = (digit) => {
    const block = scales[current];
    if (!block) return false;
    const criterion = known[block.dataset.criterion];
    const value = digit === 0 && criterion.high >= 10 && criterion.low > 0 ? 10 : digit;
    if (value < criterion.low || value > criterion.high) return false;
    rate(criterion.id, value);
    return true;
  };
  const actions = {
    arrowup: () => goTo(current - 1), arrowdown: () => goTo(current + 1),
    arrowright: () => leave(data.next), arrowleft: () => leave(data.previous), enter: () => leave(data.next),
    x: () => toggle("cannot_judge"), f: () => toggle("crisis"), c: () => byId("note").focus(),
    g: () => byId("guide").showModal(), b: () => byId("pause").showModal(),
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const target = event.target, isTyping = target.tagName === "TEXTAREA" || target.tagName === "INPUT";
    if (isTyping) { if (event.key === "Escape") target.blur(); return; }
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (target.tagName === "BUTTON" || target.tagName === "A") && target.id !== "next" && target.matches(":focus-visible")) return;
    const key = event.key.toLowerCase();
    let isUsed = true;
    if (key in markOfKey) toggleMark(markOfKey[key]);
    else if (/^[0-9]$/.test(key)) isUsed = rateByDigit(Number(key));
    else if (key in actions) actions[key]();
    else isUsed = false;
    if (isUsed) event.preventDefault();
  });

  // --- start: what the server knows, then what it has not heard yet -------------------------------
  for (const waiting of readQueue()) {
    if (waiting.code !== data.code) continue;
    const [kind, id] = waiting.field.split(":");
    if (kind === "value") answer.values[id] = waiting.value;
    else if (kind === "evidence") answer.evidence[id] = waiting.value || "";
    else if (kind === "note") answer.note = waiting.value || "";
    else answer[kind] = Boolean(waiting.value);
  }
  const firstOpen = scales.findIndex((block) => isOpen(block.dataset.criterion));
  current = Math.max(0, firstOpen);
  paint();
  flush();
})();
