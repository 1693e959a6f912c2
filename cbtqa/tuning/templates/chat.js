"use strict";
// One question at a time. Help lines come first, from /screen, and stay in view; an answer comes
// from /ask, whole and checked. Every text goes in as text: nothing of it is markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const words = data.words;
  const byId = (id) => document.getElementById(id);
  const filled = (name, detail) => words[name].replace("{detail}", detail);

  const made = (tag, name, text) => {
    const one = document.createElement(tag);
    if (name) one.className = name;
    if (text) one.textContent = text;
    return one;
  };
  const post = async (path, text) => {
    const response = await fetch(path, {
      method: "POST", credentials: "same-origin", cache: "no-store",
      headers: { "Content-Type": "application/json", "X-CSRF-Token": data.csrf },
      body: JSON.stringify({ text }),
    });
    const reply = await response.json();
    if (!response.ok) throw new Error(reply.error);
    return reply;
  };
  // what was once shown of danger stays for the rest of the visit, and gives way to nothing weaker
  const RANKS = { none: 0, concern: 1, explicit: 2 };
  let rank = 0;
  const showHelp = (help, risk) => {
    if (!help || RANKS[risk] < rank) return;
    rank = RANKS[risk];
    byId("danger-text").textContent = help;
    byId("danger").hidden = false;
  };

  const showTurn = (place, turn) => {
    place.textContent = "";
    const kind = turn.error || turn.fault ? "failed" : (turn.withheld_for || []).length ? "withheld" : "";
    place.className = `reply ${kind}`;
    if (turn.steps && turn.steps.length) {
      const list = made("ol", "steps");
      for (const step of turn.steps) {
        const item = made("li");
        item.dataset.number = step.number;
        item.append(made("b", "", step[data.language]), made("p", "prose", step.text));
        list.append(item);
      }
      place.append(list, made("p", "source", words.steps));
    } else {
      const failure = turn.error && filled("failed", [turn.error, turn.hint].filter(Boolean).join(" · "));
      place.append(made("p", "prose", turn.text || turn.notice || failure || words.explicit));
    }
    const notes = [];
    if (turn.fault) notes.push(filled("no_answer", turn.fault));
    if ((turn.withheld_for || []).length) notes.push(filled("withheld", turn.withheld_for.join("; ")));
    if ((turn.masked || []).length) notes.push(filled("masked", turn.masked.join(", ")));
    notes.push(...(turn.unheard || []));
    for (const note of notes) place.append(made("p", "source", note));
  };

  const ask = async (text) => {
    byId("empty").hidden = true;
    const exchange = made("section", "exchange"), mine = made("div", "mine"), reply = made("div", "reply");
    mine.append(made("span", "source", words.asked), made("p", "prose", text));
    reply.append(made("p", "source waiting", words.waiting));
    exchange.append(mine, reply);
    byId("said").append(exchange);
    exchange.scrollIntoView({ block: "nearest" });
    try {
      const first = await post("/screen", text);
      showHelp(first.help, first.risk);
      const turn = await post("/ask", text);
      showHelp(turn.help, turn.risk);
      showTurn(reply, turn);
    } catch {
      reply.className = "reply failed";
      reply.textContent = words.lost;
      showHelp(data.helpline, "none");
    }
    exchange.dataset.state = "ended";
    exchange.scrollIntoView({ block: "nearest" });
  };

  let isAsking = false;
  const send = async () => {
    const text = byId("text").value.trim();
    if (!text || isAsking) return;
    isAsking = byId("send").disabled = true;
    byId("text").value = "";
    await ask(text);
    isAsking = byId("send").disabled = false;
    byId("text").focus();
  };
  byId("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  byId("text").addEventListener("keydown", (event) => {
    // an Enter that ends the composition of a Chinese word sends nothing
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send();
  });
  byId("text").focus();
})();
