'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);
const slider = byId('w'), classSelect = byId('class'), sheet = byId('sheet'), strip = byId('strip'), tip = byId('tip');
const pickers = [...document.querySelectorAll('select[id^=pick-]')];
// The first curve of the last step that has samples.
const stepOf = (curve) => curve.key.split('.')[0];
const last = data.curves.findLast((curve) => curve.points.some((point) => point.sheet !== null)) || data.curves.at(-1);
// `sample` is the place of the chosen sample in the draw of its seed; null is the first that is shown.
const state = {curve: data.curves.findIndex((curve) => stepOf(curve) === stepOf(last)), point: 0, label: '', sample: null};

const currentCurve = () => data.curves[state.curve];
const currentPoint = () => currentCurve().points[state.point];
const sheetOf = (point) => (point.sheet === null ? null : data.sheets[point.sheet]);

function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function nearestPoint(curve, w) {
  const distance = (i) => Math.abs(curve.points[i].w - w);
  return curve.points.reduce((best, _, i) => (distance(i) < distance(best) ? i : best), 0);
}

// Of the curves with this value the one that is most like the current one: not every combination was measured.
function nearestCurve(picker, value) {
  const alike = (curve) => curve.told.filter((text, i) => text === currentCurve().told[i]).length;
  const found = data.curves.map((_, i) => i).filter((i) => data.curves[i].told[picker] === value);
  return found.reduce((best, i) => (alike(data.curves[i]) > alike(data.curves[best]) ? i : best));
}

// The fragment is the state, so that a link shows what its sender saw.
function readFragment() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const curve = data.curves.findIndex((candidate) => candidate.key === fields.get('step'));
  const label = fields.get('class'), number = (name) => (fields.get(name) ? Number(fields.get(name)) : NaN);
  if (curve >= 0) state.curve = curve;
  if (Number.isFinite(number('w'))) {
    state.point = nearestPoint(currentCurve(), number('w'));
  } else {
    state.point = Math.min(state.point, currentCurve().points.length - 1);
  }
  if (label !== null) state.label = data.classes.some((c) => String(c.label) === label) ? label : '';
  if (Number.isInteger(number('sample'))) state.sample = number('sample');
  return fields.has('step') || fields.has('w') || fields.has('class');
}

function writeFragment() {
  const fields = new URLSearchParams({step: currentCurve().key, w: currentPoint().w});
  if (state.label) fields.set('class', state.label);
  if (state.sample !== null) fields.set('sample', state.sample);
  // Browsers limit how often this may be called; a link that lags behind is no reason to stop.
  try { history.replaceState(null, '', '#' + fields); } catch (error) { console.warn(error.message); }
}

function nameOf(label) {
  const found = data.classes.find((one) => one.label === label);
  return found ? found.name : label;
}

// An address of its own, as a long text would be read anew for every cell.
function addressOf(of) {
  if (!of.address) {
    const [head, body] = of.src.split(','), bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
    of.address = URL.createObjectURL(new Blob([bytes], {type: head.slice('data:'.length, -';base64'.length)}));
    of.image = new Image();
    of.image.src = of.address;
    of.loaded = of.image.decode();
  }
  return of.address;
}

function showCell(element, of, cell, width) {
  const height = Math.round(width * of.height / of.width), row = Math.floor(cell / data.columns);
  Object.assign(element.style, {
    width: width + 'px',
    height: height + 'px',
    backgroundImage: `url(${addressOf(of)})`,
    backgroundSize: `${data.columns * width}px ${Math.ceil(of.labels.length / data.columns) * height}px`,
    backgroundPosition: `${-(cell % data.columns) * width}px ${-row * height}px`,
    // Tiny images are shown as the pixels they are; larger ones are not enlarged enough for pixels to be seen.
    imageRendering: of.width > 32 ? 'auto' : 'pixelated',
  });
}

// A tiny image is enlarged by a whole number, so that its pixels are squares.
const fitting = (width, of) => (of.width > 32 ? width : Math.max(1, Math.floor(width / of.width)) * of.width);

function shownCells(of) {
  const cells = of.labels.map((_, i) => i);
  if (state.label) return cells.filter((i) => String(of.labels[i]) === state.label);
  return cells.slice(0, sheetColumns(of, data.columns ** 2) ** 2);
}

function sheetColumns(of, count) {
  const narrow = byId('frame').clientWidth < 480 && of.width > 16;
  return Math.min(narrow ? 6 : data.columns, Math.max(4, Math.ceil(Math.sqrt(count))));
}

async function drawSheet() {
  const wanted = sheetOf(currentPoint()), absent = wanted === null || shownCells(wanted).length === 0;
  byId('absent').textContent = wanted === null ? 'There is no sample file of this row, so there is nothing to show.'
    : 'None of the samples that the page has of this row is of this class.';
  byId('absent').hidden = !absent;
  byId('frame').hidden = byId('keys').hidden = byId('chosen').hidden = absent;
  if (absent) return;
  addressOf(wanted);
  await wanted.loaded;
  if (sheetOf(currentPoint()) !== wanted) return;
  const cells = shownCells(wanted), columns = sheetColumns(wanted, cells.length), seed = currentPoint().seed;
  const room = Math.min(byId('frame').clientWidth, 720), width = fitting(Math.floor((room + 2) / columns) - 2, wanted);
  const places = cells.map((cell) => wanted.index[cell]);
  const chosen = places.includes(state.sample) ? state.sample : places[0];
  sheet.style.gridTemplateColumns = `repeat(${columns}, ${width}px)`;
  sheet.dataset.columns = columns;
  const options = places.map((place) => byId(`sample-${place}`) || make('div', {role: 'option', class: 'cell', id: `sample-${place}`}));
  options.forEach((option, i) => {
    option.setAttribute('aria-selected', places[i] === chosen);
    option.setAttribute('aria-label', `seed ${seed}, sample ${places[i]}, class ${nameOf(wanted.labels[cells[i]])}`);
    showCell(option, wanted, cells[i], width);
  });
  // Those that stay are left where they are, under the pointer.
  if (options.length !== sheet.children.length || options.some((option, i) => option !== sheet.children[i])) {
    sheet.replaceChildren(...options);
  }
  sheet.setAttribute('aria-activedescendant', `sample-${chosen}`);
  const shown = state.label ? 'class ' + classSelect.selectedOptions[0].textContent : 'all classes';
  sheet.setAttribute('aria-label', `${cells.length} samples of ${shown}, ${currentCurve().label}, w = ${currentPoint().w}`);
  if (tip.dataset.of) showTip(sheet.querySelector(`#${tip.dataset.of}`));
  drawChosen(chosen);
  for (const point of currentCurve().points) if (point.sheet !== null) addressOf(sheetOf(point));
}

function drawChosen(chosen) {
  const point = currentPoint(), of = sheetOf(point), label = of.labels[of.index.indexOf(chosen)];
  byId('chosen-title').textContent = `Seed ${point.seed}, sample ${chosen}, class ${nameOf(label)}, at every w`;
  byId('call').textContent = `import cfg\n\nmodel = cfg.load(workdir, ${point.load})  # the folder of the run\n`
    + `images = cfg.sample(model, [${label}] * ${chosen + 1}, ${point.how})\nimage = images[${chosen}]`;
  const key = `${state.curve} ${chosen}`;
  if (strip.dataset.key !== key) {  // else it stays, with the focus that may be in it
    strip.dataset.key = key;
    strip.replaceChildren(...currentCurve().points.flatMap((other, i) => {
      const there = sheetOf(other), cell = there === null ? -1 : there.index.indexOf(chosen);
      if (cell < 0) return [];
      const picture = make('span', {class: 'cell'}), button = make('button', {type: 'button'}, picture, `w = ${other.w}`);
      showCell(picture, there, cell, fitting(byId('chosen').clientWidth < 480 ? 40 : 72, there));
      button.addEventListener('click', () => change({point: i}));
      button.dataset.point = i;
      return [button];
    }));
  }
  for (const button of strip.children) button.setAttribute('aria-pressed', Number(button.dataset.point) === state.point);
}

function showTip(cell) {
  tip.hidden = !cell;
  tip.dataset.of = cell ? cell.id : '';
  if (!cell) return;
  tip.textContent = cell.getAttribute('aria-label');
  tip.style.top = cell.offsetTop + cell.offsetHeight + 4 + 'px';
  tip.style.left = Math.max(0, Math.min(cell.offsetLeft, byId('frame').clientWidth - tip.offsetWidth)) + 'px';
}

function drawTicks() {
  const points = currentCurve().points, every = Math.ceil(points.length / 12);
  byId('ticks').replaceChildren(...points.flatMap((point, i) => {
    if (i % every && i !== state.point) return [];
    const tick = make('span', {class: i === state.point ? 'now' : ''}, point.w);
    tick.style.left = 100 * i / Math.max(points.length - 1, 1) + '%';
    return [tick];
  }));
}

// A line of a score over w, with its intervals, and a dot at the current w.
function line(metric) {
  const scores = currentCurve().points.map((point) => point.scores[metric]);
  const all = scores.flatMap(({value, low = value, high = value}) => (value === null ? [] : [low, high]));
  const least = Math.min(...all), range = Math.max(...all) - least || 1;
  const x = (i) => 100 * i / Math.max(scores.length - 1, 1), y = (value) => 24 - 24 * (value - least) / range;
  const measured = scores.map((_, i) => i).filter((i) => scores[i].value !== null);
  const banded = measured.filter((i) => 'low' in scores[i]);
  const points = (places, of) => places.map((i) => `${x(i).toFixed(1)},${y(of(scores[i])).toFixed(1)}`).join(' ');
  const edges = points(banded, (one) => one.high) + ' ' + points(banded.toReversed(), (one) => one.low);
  const now = scores[state.point].value, dot = now === null ? '' : `M${x(state.point)} ${y(now)}h0`;
  return `<svg viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true"><polygon class="band" points="${edges}"/>`
    + `<polyline points="${points(measured, (one) => one.value)}" vector-effect="non-scaling-stroke"/>`
    + `<path class="now" d="${dot}" vector-effect="non-scaling-stroke"/></svg>`;
}

function drawScores() {
  const point = currentPoint();
  data.metrics.forEach((key, i) => {
    const {text, interval} = point.scores[i], cell = byId(key);
    cell.replaceChildren(text);
    if (interval) cell.append(make('span', {class: 'interval'}, interval));
    if (point.best.includes(key)) cell.append(make('span', {class: 'badge'}, 'best'));
    if (currentCurve().points.length > 1) cell.insertAdjacentHTML('beforeend', line(i));
  });
  byId('count').textContent = point.count;
}

function draw() {
  const point = currentPoint(), text = `w = ${point.w}` + (point.w === 0 ? ' (not guided)' : '');
  slider.max = currentCurve().points.length - 1;
  slider.value = state.point;
  slider.disabled = currentCurve().points.length === 1;
  slider.setAttribute('aria-valuetext', text);
  byId('w-text').textContent = text;
  pickers.forEach((picker, i) => { picker.value = currentCurve().told[i]; });
  classSelect.value = state.label;
  byId('told').textContent = `${currentCurve().label}, ${text}: FID ${point.scores[0].text}, IS ${point.scores[1].text}`;
  drawScores();
  drawTicks();
  return drawSheet();
}

function change(changes) {
  Object.assign(state, changes);
  writeFragment();
  return draw();
}

const move = (by) => change({point: Math.min(Math.max(state.point + by, 0), currentCurve().points.length - 1)});

slider.addEventListener('input', () => change({point: Number(slider.value)}));
classSelect.addEventListener('change', () => change({label: classSelect.value}));
pickers.forEach((picker, i) => picker.addEventListener('change', () => {
  const curve = nearestCurve(i, picker.value), w = currentPoint().w;
  change({curve, point: nearestPoint(data.curves[curve], w)});
}));

const choose = async (cell) => {
  await change({sample: Number(cell.id.slice('sample-'.length))});
  showTip(byId(cell.id));
  byId(cell.id).scrollIntoView({block: 'nearest'});
};
const selected = () => byId(sheet.getAttribute('aria-activedescendant'));
sheet.addEventListener('pointerover', (event) => showTip(event.target.closest('.cell')));
sheet.addEventListener('pointerleave', () => showTip(null));
sheet.addEventListener('click', (event) => { if (event.target.closest('.cell')) choose(event.target.closest('.cell')); });
sheet.addEventListener('focus', () => { if (sheet.matches(':focus-visible')) showTip(selected()); });
sheet.addEventListener('blur', () => showTip(null));
sheet.addEventListener('keydown', (event) => {
  const columns = Number(sheet.dataset.columns), cells = [...sheet.children], at = cells.indexOf(selected());
  const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: cells.length - 1 - at};
  const by = {'[': -1, ']': 1}[event.key];
  if (event.key in steps) {
    event.preventDefault();
    if (cells[at + steps[event.key]]) choose(cells[at + steps[event.key]]);
  } else if (by) {
    move(by);
  }
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') showTip(null);
  const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  const elsewhere = event.target.closest('input, select, .scroll, #sheet') || event.altKey || event.ctrlKey || event.metaKey;
  if (!by || elsewhere) return;
  event.preventDefault();
  move(by);
});
window.addEventListener('hashchange', () => {
  if (!readFragment()) return;
  draw();
  byId('samples').scrollIntoView();
});
window.addEventListener('resize', drawSheet);

for (const {label, name} of data.classes) classSelect.add(new Option(name, label));
const linked = readFragment();
draw();
if (linked) byId('samples').scrollIntoView();
