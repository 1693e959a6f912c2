"use strict";
// Shows the examples that hold all words and carry all chosen facts; without a script all are shown.
for (const finder of document.querySelectorAll(".finder")) {
  const examples = [...finder.parentElement.querySelectorAll(".example")];
  const texts = examples.map((one) => one.textContent.normalize("NFKC").toLowerCase());
  const facts = examples.map((one) => new Set(one.dataset.facts.split(" ")));
  const find = () => {
    const asked = new FormData(finder);
    const words = asked.get("words").normalize("NFKC").toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = [...asked].filter(([name, value]) => name !== "words" && value).map((one) => one[1]);
    let shown = 0;
    examples.forEach((one, place) => {
      const fits = words.every((word) => texts[place].includes(word));
      one.hidden = !(fits && chosen.every((fact) => facts[place].has(fact)));
      shown += one.hidden ? 0 : 1;
    });
    finder.querySelector("output").textContent = `${shown} / ${examples.length}`;
  };
  finder.addEventListener("input", find);
  finder.addEventListener("submit", (event) => event.preventDefault());
  finder.hidden = false;
  find();
}
