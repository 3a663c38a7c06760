// Sorts, filters and saves the table of all participants. Without it the table is all there.
(() => {
  const table = document.getElementById('people');
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => ({
    row,
    name: row.cells[0].textContent.toLowerCase(),
    doubtful: row.querySelector('.look') !== null,
  }));
  const search = document.getElementById('search');
  const doubtful = document.getElementById('doubtful');
  const shown = document.getElementById('shown');

  const filter = () => {
    const words = search.value.trim().toLowerCase();
    let count = 0;
    for (const entry of rows) {
      const fits = entry.name.includes(words) && (entry.doubtful || !doubtful.checked);
      entry.row.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${rows.length} shown`;
  };
  search.addEventListener('input', filter);
  doubtful.addEventListener('change', filter);
  search.form.addEventListener('submit', (event) => event.preventDefault());

  const value = (row, column) => {
    const text = row.cells[column].textContent;
    const number = Number.parseFloat(text.replace(/^[<>] /, '').replace('−', '-'));
    return { text, number: column ? number : NaN };
  };
  const order = new Intl.Collator('en', { numeric: true });
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => head.addEventListener('click', () => {
    const down = head.getAttribute('aria-sort') === 'ascending';
    heads.forEach((other) => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const keyed = rows.map((entry) => ({ entry, key: value(entry.row, column) }));
    keyed.sort(({ key: a }, { key: b }) => {
      const [noA, noB] = [a.text === 'n/a', b.text === 'n/a'];
      if (noA || noB) return noA - noB; // what is unknown comes last, whichever way
      const both = Number.isFinite(a.number) && Number.isFinite(b.number);
      return (down ? -1 : 1) * (both ? a.number - b.number : order.compare(a.text, b.text));
    });
    body.append(...keyed.map(({ entry }) => entry.row));
  }));

  document.getElementById('download').addEventListener('click', () => {
    const lines = Array.from(table.rows, (row) => Array.from(row.cells, (cell) =>
      cell.textContent.replace('−', '-').trim()).join('\t'));
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([lines.join('\n') + '\n'], { type: 'text/plain' }));
    link.download = 'participants.tsv';
    link.click();
    URL.revokeObjectURL(link.href);
  });
})();
