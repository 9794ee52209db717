// Tables of data sort by a click on a heading; a second click turns them round. No library: a page is a file that anyone opens.
(() => {
  "use strict";

  // what a cell is sorted by: its first number ("32.9 [32.1, 33.6]", "1.87×", "12 %", "1,234"), else its text
  const key = (cell) => {
    const text = (cell ? cell.textContent : "").trim();
    const number = text.replace(/(\d),(?=\d{3}(?!\d))/g, "$1").replace("−", "-").match(/^[^\w-]{0,2}(-?(?:\d+\.?\d*|inf)(?:e[+-]?\d+)?)/i);
    return { number: number ? Number(number[1].replace(/inf/i, "Infinity")) : NaN, text };
  };

  const compare = (a, b) => {
    const numbers = [a, b].map((value) => Number.isNaN(value.number));
    if (numbers[0] !== numbers[1]) return numbers[0] - numbers[1]; // what has no number comes last
    if (!numbers[0] && a.number !== b.number) return a.number - b.number;
    return a.text.localeCompare(b.text, "en", { numeric: true });
  };

  const sortable = (table) => {
    const head = table.tHead, body = table.tBodies[0];
    if (!head || !body || body.rows.length < 3 || table.querySelector("tbody [rowspan], tbody [colspan]")) return null;
    const headings = [...head.rows[head.rows.length - 1].cells];
    const columns = Math.max(...[...body.rows].map((row) => row.cells.length));
    if (headings.length !== columns || headings.some((cell) => cell.colSpan > 1)) return null;
    // pandas writes the index's name in a row of its own, with no other heading in it
    const named = headings.filter((cell) => cell.textContent.trim()).length;
    const row = named <= 1 && head.rows.length > 1 ? head.rows[head.rows.length - 2] : head.rows[head.rows.length - 1];
    return row.cells.length === columns ? { body, headings: [...row.cells] } : null;
  };

  const prepare = (table) => {
    const found = sortable(table);
    if (!found) return;
    const { body, headings } = found;
    const original = [...body.rows];
    headings.forEach((heading, column) => {
      if (!heading.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "catome-sort";
      button.title = "sort by this column";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const now = heading.getAttribute("aria-sort");
        const next = now === "ascending" ? "descending" : now === "descending" ? null : "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        let rows = original;
        if (next) {
          heading.setAttribute("aria-sort", next);
          const keyed = original.map((row) => ({ row, value: key(row.cells[column]) }));
          keyed.sort((a, b) => {
            const empty = [a, b].map(({ value }) => Number.isNaN(value.number) && !value.text);
            if (empty[0] !== empty[1]) return empty[0] - empty[1];
            return (next === "descending" ? -1 : 1) * compare(a.value, b.value);
          });
          rows = keyed.map(({ row }) => row);
        }
        body.append(...rows);
      });
    });
  };

  const all = () => document.querySelectorAll(".bd-article table, .bd-content table").forEach((table) => {
    if (!table.dataset.sortable) {
      table.dataset.sortable = "yes";
      prepare(table);
    }
  });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", all);
  else all();
})();
