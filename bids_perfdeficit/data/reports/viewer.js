// Three planes through the template and a map. Arrays are RAS, x fastest; the display is
// radiological, as in the figures: the patient's right is on the left, anterior on the left.
(async () => {
  const source = document.getElementById('view-data');
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const at = (name) => document.getElementById(`view-${name}`);
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const { brain, colours } = data;
  const grey = await unpack(brain.data);
  const SCALE = 3;
  const AXES = [['sagittal', 0, 'A', 'P'], ['coronal', 1, 'R', 'L'], ['axial', 2, 'R', 'L']];
  const NAMES = ['x', 'y', 'z'];
  const place = [0, 0, 0]; // mm
  let map = null;

  const toVoxel = (grid, mm) => mm.map((v, a) => Math.round((v - grid.origin[a]) / grid.spacing[a]));
  const toMm = (grid, ijk) => ijk.map((v, a) => grid.origin[a] + v * grid.spacing[a]);
  const offset = (grid, [i, j, k]) => {
    const [nx, ny, nz] = grid.shape;
    return i < 0 || j < 0 || k < 0 || i >= nx || j >= ny || k >= nz ? -1 : i + nx * (j + ny * k);
  };
  const sample = (values, mm) => {
    const where = offset(map, toVoxel(map, mm));
    return where < 0 ? 0 : values[where];
  };
  // Between voxels, for the eye alone.
  const blend = (values, mm) => {
    const at = mm.map((v, a) => (v - map.origin[a]) / map.spacing[a]);
    const low = at.map(Math.floor);
    let sum = 0;
    for (let corner = 0; corner < 8; corner += 1) {
      let weight = 1;
      const ijk = low.map((v, a) => {
        const up = (corner >> a) & 1;
        weight *= up ? at[a] - v : 1 - at[a] + v;
        return v + up;
      });
      const where = weight ? offset(map, ijk) : -1;
      if (where >= 0) sum += weight * values[where];
    }
    return sum;
  };

  const drawPlane = ([name, axis, first, last]) => {
    const [across, down] = [0, 1, 2].filter((a) => a !== axis);
    const [wide, tall] = [brain.shape[across], brain.shape[down]];
    const image = new ImageData(wide, tall);
    const ijk = toVoxel(brain, place);
    const least = at('least').value / 100;
    const mmAt = (column, row) => {
      ijk[across] = wide - 1 - column;
      ijk[down] = tall - 1 - row;
      return toMm(brain, ijk);
    };
    for (let row = 0; row < tall; row += 1) {
      for (let column = 0; column < wide; column += 1) {
        const mm = mmAt(column, row);
        const ground = grey[offset(brain, ijk)];
        let colour = [ground * 2.6, ground * 2.6, ground * 2.6];
        const value = Math.round(blend(map.values, mm));
        if (value > 255 * least && value > 0) {
          const n = 3 * value;
          colour = colours.slice(n, n + 3);
        }
        const declared = blend(map.mask, mm) > 0.5;
        const edge = [[across, 1], [across, -1], [down, 1], [down, -1]].some(([a, step]) => {
          const beside = [...mm];
          beside[a] += step * brain.spacing[a];
          return blend(map.mask, beside) > 0.5 !== declared;
        });
        // White inside, black outside: to be seen on any colour.
        if (edge) colour = declared ? [255, 255, 255] : [0, 0, 0];
        image.data.set([...colour, 255], 4 * (row * wide + column));
      }
    }
    const small = new OffscreenCanvas(wide, tall);
    small.getContext('2d').putImageData(image, 0, 0);
    const canvas = at(name);
    canvas.width = wide * SCALE;
    canvas.height = tall * SCALE;
    const pen = canvas.getContext('2d');
    pen.drawImage(small, 0, 0, canvas.width, canvas.height);
    const here = toVoxel(brain, place);
    const x = (wide - 0.5 - here[across]) * SCALE;
    const y = (tall - 0.5 - here[down]) * SCALE;
    pen.fillStyle = '#56B4E9';
    pen.fillRect(x, 0, 1, canvas.height);
    pen.fillRect(0, y, canvas.width, 1);
    pen.fillStyle = '#fff';
    pen.font = 'bold 16px sans-serif';
    pen.fillText(first, 4, canvas.height / 2);
    pen.textAlign = 'right';
    pen.fillText(last, canvas.width - 4, canvas.height / 2);
  };

  const text = (number) => String(Number(number.toPrecision(2))).replace('-', '−');
  const draw = () => {
    AXES.forEach(drawPlane);
    const [x, y, z] = place;
    const side = Math.abs(x) < 1 ? 'midline' : x > 0 ? 'right' : 'left';
    const value = (sample(map.values, place) / 255) * map.max;
    const inside = sample(map.mask, place) ? ', declared' : '';
    at('value').textContent = `x ${text(x)}, y ${text(y)}, z ${text(z)} mm (${side}): ${text(value)}${inside}`;
    at('least-text').textContent = text((at('least').value / 100) * map.max);
    NAMES.forEach((name, axis) => { at(name).value = place[axis]; });
  };
  const choose = async (id) => {
    map = data.maps.find((entry) => entry.id === id);
    map.values ??= await unpack(map.data);
    map.mask ??= await unpack(map.declared);
    at('map').value = id;
    at('max').textContent = text(map.max);
    let peak = 0;
    map.values.forEach((value, n) => { if (value > map.values[peak]) peak = n; });
    const [nx, ny] = map.shape;
    const voxel = [peak % nx, Math.floor(peak / nx) % ny, Math.floor(peak / nx / ny)];
    place.splice(0, 3, ...toMm(brain, toVoxel(brain, toMm(map, voxel))));
    draw();
  };

  NAMES.forEach((name, axis) => {
    const slider = at(name);
    const end = brain.origin[axis] + (brain.shape[axis] - 1) * brain.spacing[axis];
    Object.assign(slider, { min: brain.origin[axis], max: end, step: brain.spacing[axis] });
    slider.addEventListener('input', () => { place[axis] = Number(slider.value); draw(); });
  });
  AXES.forEach(([name, axis]) => at(name).addEventListener('click', (event) => {
    const [across, down] = [0, 1, 2].filter((a) => a !== axis);
    const box = event.target.getBoundingClientRect();
    const ijk = toVoxel(brain, place);
    const part = (v, size, n) => n - 1 - Math.min(n - 1, Math.floor((v / size) * n));
    ijk[across] = part(event.clientX - box.left, box.width, brain.shape[across]);
    ijk[down] = part(event.clientY - box.top, box.height, brain.shape[down]);
    place.splice(0, 3, ...toMm(brain, ijk));
    draw();
  }));
  at('least').addEventListener('input', draw);
  at('map').addEventListener('change', () => choose(at('map').value));
  document.querySelectorAll('[data-map]').forEach((link) =>
    link.addEventListener('click', () => choose(link.dataset.map)));
  const pen = at('bar').getContext('2d');
  for (let n = 0; n < 256; n += 1) {
    pen.fillStyle = `rgb(${colours.slice(3 * n, 3 * n + 3).join(',')})`;
    pen.fillRect(n, 0, 1, 12);
  }
  await choose(data.maps[0].id);
})();
