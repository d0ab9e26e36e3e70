"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  /* Sort: a press on a head sorts by its column, a second press the other way round; blanks stay last. */
  for (const table of all("table.sortable")) {
    all("thead th button", table).forEach((button) => {
      button.addEventListener("click", () => {
        const head = button.closest("th"), column = head.cellIndex, body = table.tBodies[0];
        const first = head.dataset.first || "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        all("thead th", table).forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const value = (row) => {
          const cell = row.cells[column], shown = table.dataset.shown;
          return cell.getAttribute(shown ? `data-${shown}` : "data-value") ?? cell.dataset.value ?? cell.textContent.trim();
        };
        const rows = [...body.rows].map((row, position) => [value(row), position, row]);
        rows.sort(([a, i], [b, j]) => {
          if (a === "" || b === "") return (a === "") - (b === "") || i - j;
          const difference = a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b);
          return sign * difference || i - j;
        });
        rows.forEach(([, , row]) => body.append(row));
      });
    });
  }

  /* Filter: rows by the defense's name, columns by the attack's. */
  const defense = document.getElementById("filter-defense"), attack = document.getElementById("filter-attack");
  const found = document.getElementById("found");
  const filter = () => {
    const rows = defense.value.trim().toLowerCase(), columns = attack.value.trim().toLowerCase();
    for (const row of all("[data-defense]")) row.hidden = !row.dataset.defense.toLowerCase().includes(rows);
    for (const cell of all("[data-attack]")) cell.hidden = !cell.dataset.attack.toLowerCase().includes(columns);
    const view = all(".view").find((each) => !each.hidden);
    const count = view ? all("tbody tr[data-defense]:not([hidden])", view).length : 0;
    found.textContent = rows || columns ? `${count} of the ranked defenses shown` : "";
  };
  for (const field of [defense, attack]) if (field) field.addEventListener("input", filter);

  /* Choose: where, and what the heat map shows. */
  const place = document.getElementById("place"), measure = document.getElementById("measure");
  const choosePlace = () => {
    for (const view of all(".view")) view.hidden = view.dataset.place !== place.value;
    for (const heat of all(".heat-of")) heat.hidden = place.value !== "" && heat.dataset.place !== place.value;
    filter();
  };
  if (place) {
    place.addEventListener("change", choosePlace);
    choosePlace();
  }
  const chooseMeasure = () => {
    for (const table of all("table.heat")) {
      table.dataset.shown = measure.value;
      all("thead th", table).forEach((each) => each.removeAttribute("aria-sort"));
    }
    for (const each of all(".scale")) each.dataset.shown = measure.value;
    for (const each of all("[data-measure]")) each.hidden = each.dataset.measure !== measure.value;
  };
  if (measure) {
    measure.addEventListener("change", chooseMeasure);
    chooseMeasure();
  }
  for (const each of all(".needs-script")) each.hidden = false;

  /* A link to a cell opens it. */
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    const folded = target && target.querySelector("details.cell");
    if (folded) {
      folded.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", open);
  open();
})();
