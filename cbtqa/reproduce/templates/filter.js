// Shows the examples that every filter of their section lets through; nothing leaves the page.
for (const form of document.querySelectorAll(".filter")) {
  const examples = [...form.closest("section").querySelectorAll(".example")];
  const texts = examples.map((one) => one.textContent.toLowerCase());
  const search = form.querySelector("input");
  const selects = [...form.querySelectorAll("select")];
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    examples.forEach((one, place) => {
      const fits = words.every((word) => texts[place].includes(word)) && selects.every(
        (select) => !select.value || one.dataset[select.dataset.of].split(" ").includes(select.value));
      one.hidden = !fits;
      shown += fits;
    });
    form.querySelector("output").textContent = `${shown} / ${examples.length}`;
    form.querySelector(".nothing").hidden = shown > 0;
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.querySelector("button").addEventListener("click", () => {
    search.value = "";
    selects.forEach((select) => { select.value = ""; });
    apply();
    search.focus();
  });
  apply(); // a browser may restore what was typed before
}
