// Three planes through a background and a map. Arrays are RAS, x fastest; the display is
// radiological, as in the figures: the patient's right is on the left, anterior on the left.
(async () => {
  const source = document.getElementById('view-data');
  const data = source ? JSON.parse(source.textContent) : window.perfdeficitView;
  if (!data) return; // the file beside the page was not copied with it
  const at = (name) => document.getElementById(`view-${name}`);
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const { colours } = data;
  const brain = Object.values(data.volumes)[0]; // all backgrounds share its grid
  const SCALE = 3;
  const AXES = [['sagittal', 0, 'A', 'P'], ['coronal', 1, 'R', 'L'], ['axial', 2, 'R', 'L']];
  const NAMES = ['x', 'y', 'z'];
  const point = [0, 0, 0]; // mm
  let map = null;
  let ground = null;

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
    const position = mm.map((v, a) => (v - map.origin[a]) / map.spacing[a]);
    const low = position.map(Math.floor);
    let sum = 0;
    for (let corner = 0; corner < 8; corner += 1) {
      let weight = 1;
      const ijk = low.map((v, a) => {
        const up = (corner >> a) & 1;
        weight *= up ? position[a] - v : 1 - position[a] + v;
        return v + up;
      });
      const where = weight ? offset(map, ijk) : -1;
      if (where >= 0) sum += weight * values[where];
    }
    return sum;
  };

  // What part of a plane is shown: all of it, or a window around the point.
  const crop = (wide, tall, column, row) => {
    const zoom = Number(at('zoom').value);
    const [w, h] = [wide / zoom, tall / zoom];
    const low = (middle, size, all) => Math.min(Math.max(middle - size / 2, 0), all - size);
    return [low(column + 0.5, w, wide), low(row + 0.5, h, tall), w, h];
  };
  const inPlane = (axis) => [0, 1, 2].filter((a) => a !== axis);
  const cropAt = (axis) => {
    const [across, down] = inPlane(axis);
    const [wide, tall] = [brain.shape[across], brain.shape[down]];
    const here = toVoxel(brain, point);
    return crop(wide, tall, wide - 1 - here[across], tall - 1 - here[down]);
  };

  const drawPlane = ([name, axis, first, last]) => {
    const [across, down] = inPlane(axis);
    const [wide, tall] = [brain.shape[across], brain.shape[down]];
    const image = new ImageData(wide, tall);
    const ijk = toVoxel(brain, point);
    const least = at('least').value / 100;
    const opacity = at('opacity').value / 100;
    const gain = 255 / (ground.high - ground.low);
    const mmAt = (column, row) => {
      ijk[across] = wide - 1 - column;
      ijk[down] = tall - 1 - row;
      return toMm(brain, ijk);
    };
    // Whether a voxel is in the mask, once for each voxel and a rim.
    const inside = new Uint8Array((wide + 2) * (tall + 2));
    for (let row = -1; row <= tall; row += 1) {
      for (let column = -1; column <= wide; column += 1) {
        inside[(row + 1) * (wide + 2) + column + 1] = blend(map.mask, mmAt(column, row)) > 0.5;
      }
    }
    for (let row = 0; row < tall; row += 1) {
      for (let column = 0; column < wide; column += 1) {
        const mm = mmAt(column, row);
        const grey = (ground.values[offset(brain, ijk)] - ground.low) * gain;
        let colour = [grey, grey, grey];
        const value = Math.round(blend(map.values, mm));
        if (value > 255 * least && value > 0) {
          const n = 3 * value;
          colour = colour.map((g, a) => opacity * colours[n + a] + (1 - opacity) * g);
        }
        const here = (row + 1) * (wide + 2) + column + 1;
        const own = inside[here];
        const edge = [1, -1, wide + 2, -wide - 2].some((step) => inside[here + step] !== own);
        // White inside, black outside: to be seen on any colour.
        if (edge) colour = own ? [255, 255, 255] : [0, 0, 0];
        image.data.set([...colour, 255], 4 * (row * wide + column));
      }
    }
    const small = new OffscreenCanvas(wide, tall);
    small.getContext('2d').putImageData(image, 0, 0);
    const canvas = at(name);
    canvas.width = wide * SCALE;
    canvas.height = tall * SCALE;
    const pen = canvas.getContext('2d');
    const [left, top, w, h] = cropAt(axis);
    pen.drawImage(small, left, top, w, h, 0, 0, canvas.width, canvas.height);
    const here = toVoxel(brain, point);
    const x = ((wide - 0.5 - here[across] - left) / w) * canvas.width;
    const y = ((tall - 0.5 - here[down] - top) / h) * canvas.height;
    pen.fillStyle = '#56B4E9';
    pen.fillRect(x, 0, 1, canvas.height);
    pen.fillRect(0, y, canvas.width, 1);
    pen.font = 'bold 16px sans-serif';
    for (const [letter, align, at] of [[first, 'left', 4], [last, 'right', canvas.width - 4]]) {
      pen.textAlign = align;
      pen.lineWidth = 4;
      pen.strokeStyle = '#000'; // the skull is as white as the letter
      pen.strokeText(letter, at, canvas.height / 2);
      pen.fillStyle = '#fff';
      pen.fillText(letter, at, canvas.height / 2);
    }
  };

  const text = (number) => String(Number(number.toPrecision(2))).replace('-', '−');
  const draw = () => {
    AXES.forEach(drawPlane);
    const [x, y, z] = point;
    const side = Math.abs(x) < 1 ? 'midline' : x > 0 ? 'right' : 'left';
    const value = (sample(map.values, point) / 255) * map.max;
    const within = sample(map.mask, point) ? `, ${data.inside}` : '';
    const where = data.sides ? ` (${side})` : '';
    at('value').textContent = `x ${text(x)}, y ${text(y)}, z ${text(z)} mm${where}: ${text(value)}${within}`;
    at('least-text').textContent = text((at('least').value / 100) * map.max);
    NAMES.forEach((name, axis) => { at(name).value = point[axis]; });
  };
  const choose = async (id) => {
    const first = map === null;
    const next = data.maps.find((entry) => entry.id === id);
    next.values ??= await unpack(next.data);
    next.mask ??= await unpack(next.declared);
    if (!ground) await lay(0);
    map = next;
    at('map').value = id;
    at('max').textContent = text(map.max);
    if (map.start) {
      if (first) point.splice(0, 3, ...toMm(brain, toVoxel(brain, map.start)));
    } else {
      let peak = 0;
      map.values.forEach((value, n) => { if (value > map.values[peak]) peak = n; });
      const [nx, ny] = map.shape;
      const voxel = [peak % nx, Math.floor(peak / nx) % ny, Math.floor(peak / nx / ny)];
      point.splice(0, 3, ...toMm(brain, toVoxel(brain, toMm(map, voxel))));
    }
    draw();
  };
  const lay = async (number) => {
    ground = data.grounds[number];
    const volume = data.volumes[ground.volume];
    volume.values ??= await unpack(volume.data);
    ground.values = volume.values;
    if (map?.values) draw();
  };
  const step = (axis, sign) => {
    const end = brain.origin[axis] + (brain.shape[axis] - 1) * brain.spacing[axis];
    const next = point[axis] + sign * brain.spacing[axis];
    point[axis] = Math.min(Math.max(next, brain.origin[axis]), end);
    draw();
  };

  NAMES.forEach((name, axis) => {
    const slider = at(name);
    const end = brain.origin[axis] + (brain.shape[axis] - 1) * brain.spacing[axis];
    Object.assign(slider, { min: brain.origin[axis], max: end, step: brain.spacing[axis] });
    slider.addEventListener('input', () => { point[axis] = Number(slider.value); draw(); });
  });
  AXES.forEach(([name, axis]) => {
    const canvas = at(name);
    canvas.addEventListener('click', (event) => {
      const [across, down] = inPlane(axis);
      const box = canvas.getBoundingClientRect();
      const [left, top, w, h] = cropAt(axis);
      const ijk = toVoxel(brain, point);
      const part = (v, size, low, span, n) => n - 1 - Math.min(n - 1, Math.max(0, Math.floor(low + (v / size) * span)));
      ijk[across] = part(event.clientX - box.left, box.width, left, w, brain.shape[across]);
      ijk[down] = part(event.clientY - box.top, box.height, top, h, brain.shape[down]);
      point.splice(0, 3, ...toMm(brain, ijk));
      canvas.focus({ preventScroll: true });
      draw();
    });
    // The wheel and the arrows scroll through the slices of the plane that was clicked into.
    canvas.addEventListener('wheel', (event) => {
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      step(axis, event.deltaY > 0 ? -1 : 1);
    }, { passive: false });
    canvas.addEventListener('keydown', (event) => {
      const sign = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
      if (!sign) return;
      event.preventDefault();
      step(axis, sign);
    });
  });
  ['least', 'opacity', 'zoom'].forEach((name) => at(name).addEventListener('input', draw));
  at('map').addEventListener('change', () => choose(at('map').value));
  at('ground').addEventListener('change', () => lay(Number(at('ground').value)));
  document.querySelectorAll('[data-map]').forEach((link) =>
    link.addEventListener('click', () => choose(link.dataset.map)));
  const pen = at('bar').getContext('2d');
  for (let n = 0; n < 256; n += 1) {
    pen.fillStyle = `rgb(${colours.slice(3 * n, 3 * n + 3).join(',')})`;
    pen.fillRect(n, 0, 1, 12);
  }
  // A long page is laid out first; the viewer is drawn when it comes into view, or is asked for.
  const begin = async () => { await lay(0); await choose(data.maps[0].id); };
  if ('IntersectionObserver' in window) {
    const seen = new IntersectionObserver((entries) => {
      if (map || !entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      begin();
    }, { rootMargin: '600px' });
    seen.observe(at('map').closest('.viewer'));
  } else await begin();
})();
