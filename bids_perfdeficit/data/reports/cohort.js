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

  document.getElementById('written').textContent =
    `Page written ${new Date(document.lastModified).toLocaleString()}.`;

  // Ratings: changes are kept by the browser until they are saved as a file.
  const store = `perfdeficit-ratings:${window.location.pathname}`;
  let changed = {};
  try { changed = JSON.parse(window.localStorage.getItem(store)) ?? {}; } catch { changed = {}; }
  const keep = () => {
    try { window.localStorage.setItem(store, JSON.stringify(changed)); } catch { /* private mode */ }
  };
  const cells = Array.from(body.querySelectorAll('td.rate'));
  const nameOf = (cell) => cell.parentElement.cells[0].textContent.trim();
  const given = (cell) => changed[nameOf(cell)]
    ?? { rating: cell.dataset.rating, remark: cell.dataset.remark };
  const write = (cell) => {
    const { rating, remark } = given(cell);
    cell.textContent = rating && remark ? `${rating}: ${remark}` : rating;
    cell.classList.toggle('changed', nameOf(cell) in changed);
  };
  const edit = (cell) => {
    const before = given(cell);
    const select = document.createElement('select');
    select.setAttribute('aria-label', `Rating of ${nameOf(cell)}`);
    ['', 'pass', 'doubt', 'fail'].forEach((value) => select.add(new Option(value || '(none)', value)));
    select.value = before.rating;
    const remark = document.createElement('input');
    Object.assign(remark, { value: before.remark, placeholder: 'remark' });
    remark.setAttribute('aria-label', `Remark on ${nameOf(cell)}`);
    const done = document.createElement('button');
    Object.assign(done, { type: 'button', textContent: 'OK' });
    done.addEventListener('click', (event) => {
      event.stopPropagation();
      changed[nameOf(cell)] = {
        rating: select.value, remark: remark.value.replace(/\s+/g, ' ').trim(),
      };
      keep();
      write(cell);
    });
    remark.addEventListener('keydown', (event) => { if (event.key === 'Enter') done.click(); });
    cell.replaceChildren(select, ' ', remark, ' ', done);
    select.focus();
  };
  cells.forEach((cell) => {
    if (nameOf(cell) in changed) write(cell);
    cell.tabIndex = 0;
    cell.addEventListener('click', (event) => { if (event.target === cell) edit(cell); });
    cell.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && event.target === cell) { event.preventDefault(); edit(cell); }
    });
  });
  const offer = (lines, name) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([lines.join('\n') + '\n'], { type: 'text/plain' }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  };
  document.getElementById('save').addEventListener('click', () => {
    const lines = ['participant_id\tsession_id\trating\tremark'];
    for (const cell of cells) {
      const { rating, remark } = given(cell);
      const [who, session] = nameOf(cell).split('_');
      if (rating) lines.push([who, session ?? 'n/a', rating, remark || 'n/a'].join('\t'));
    }
    offer(lines, 'ratings.tsv');
  });

  document.getElementById('download').addEventListener('click', () => {
    const lines = Array.from(table.rows, (row) => Array.from(row.cells, (cell) =>
      cell.textContent.replace('−', '-').trim()).join('\t'));
    offer(lines, 'participants.tsv');
  });
})();
