// Click a column's head to sort by it. Without scripts the table stays in the data set's order.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button"; button.className = "sort";
    button.append(...head.childNodes); head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0], rows = [...body.rows];
      const value = row => { const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const number = parseFloat(text); return Number.isNaN(number) ? (text === "n/a" ? -1 : text) : number; };
      rows.sort((a, b) => { const [x, y] = [value(a), value(b)];
        return (typeof x === "string" || typeof y === "string" ? String(x).localeCompare(String(y)) : x - y) * (up ? 1 : -1); });
      body.append(...rows);
    });
  });
}
