// The owner's page. Whatever the node sends goes through textContent, so that it is shown and never run.
'use strict';

const MOST_SAMPLES = 300;
const POLL_MS = 2000;
const TOKEN_KEY = 'hivemind-token';
const HOW_TO_GET_TOKEN = 'This needs the token: run "hivemind-worker monitor" on the node, it opens the page with it.';
const byId = (id) => document.getElementById(id);

let snapshot = null;
let samples = [];
let lastHeard = 0;
let polling = null;

function takeToken() {
  const match = /^#token=([0-9A-Fa-f]{32})$/.exec(location.hash);
  if (match) {
    sessionStorage.setItem(TOKEN_KEY, match[1]);
    history.replaceState(null, '', location.pathname);
  }
}

const token = () => sessionStorage.getItem(TOKEN_KEY);

function headers() {
  return token() ? { 'X-HiveMind-Token': token() } : {};
}

// --- words and figures ---

function bytes(value) {
  if (value === null || value === undefined) return 'unknown';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${value.toFixed(unit === 0 || value >= 100 ? 0 : 1)} ${units[unit]}`;
}

function duration(ms) {
  if (ms < 100) return `${ms} ms`;
  if (ms < 10000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds / 3600) % 24} h`;
}

const percent = (value) => (value === null || value === undefined ? 'unknown' : `${value.toFixed(0)} %`);
const cores = (millis) => String(millis / 1000);
const when = (ms) => new Date(ms).toLocaleString(undefined, { dateStyle: 'short', timeStyle: 'medium' });

function share(part, whole) {
  return whole > 0 && part !== null && part !== undefined ? (100 * part) / whole : null;
}

// --- elements ---

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Writes only what changed: a selection in the page or a screen reader's place stays.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function track(label) {
  const outer = make('div', 'track');
  outer.setAttribute('role', 'meter');
  outer.setAttribute('aria-label', label);
  outer.setAttribute('aria-valuemin', '0');
  outer.setAttribute('aria-valuemax', '100');
  outer.append(make('div', 'fill'));
  return outer;
}

function setTrack(outer, value, text, isCalm) {
  const shown = Math.max(0, Math.min(100, value || 0));
  outer.setAttribute('aria-valuenow', shown.toFixed(0));
  outer.setAttribute('aria-valuetext', text);
  const fill = outer.firstChild;
  fill.style.width = `${shown}%`;
  fill.className = isCalm ? 'fill' : shown >= 95 ? 'fill bad' : shown >= 80 ? 'fill warn' : 'fill';
}

// A calm row may well be full: that is what it is for.
function meterRow(label, isCalm) {
  const box = make('div');
  const row = make('div', 'row');
  const value = make('span');
  row.append(make('span', 'soft', label), value);
  const bar = track(label);
  box.append(row, bar);
  return { box, set(part, text) { say(value, text); setTrack(bar, part, text, isCalm); } };
}

function svg(name, attributes) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// Lines over the last samples, as many as there are; an unknown value is a gap.
function drawSpark(chart, series, most) {
  const [width, height] = [300, 44];
  const shown = samples.length === 1 ? [samples[0], samples[0]] : samples;
  const x = (index) => ((index * width) / Math.max(1, shown.length - 1)).toFixed(1);
  const y = (value) => (height - 2 - (Math.min(value, most) / most) * (height - 4)).toFixed(1);
  const paths = series.map((pick, order) => {
    let line = '';
    let area = '';
    let start = null;
    const close = (index) => { if (start !== null) area += `L${x(index)} ${height}L${x(start)} ${height}Z`; start = null; };
    shown.forEach((sample, index) => {
      const value = pick(sample);
      if (value === null || value === undefined) { close(index - 1); return; }
      const point = `${start === null ? 'M' : 'L'}${x(index)} ${y(value)}`;
      if (start === null) start = index;
      line += point;
      area += point;
    });
    close(shown.length - 1);
    const drawn = [svg('path', { d: line, class: order === 0 ? 'first' : 'second' })];
    if (order === 0) drawn.unshift(svg('path', { d: area, class: 'area' }));
    return drawn;
  });
  chart.replaceChildren(svg('line', { x1: 0, x2: width, y1: height - 1, y2: height - 1 }), ...paths.flat());
}

function figure(id, label, hasBar) {
  const card = byId(id);
  const big = make('p', hasBar ? 'big' : 'big pair');
  if (!hasBar) big.append(make('span'), make('span', 'second'));
  const bar = track(label);
  const note = make('p', 'note');
  const chart = svg('svg', { viewBox: '0 0 300 44', preserveAspectRatio: 'none', class: 'spark', 'aria-hidden': 'true' });
  card.append(big);
  if (hasBar) card.append(bar);
  card.append(note, chart);
  return { big, bar, note, chart };
}

const figures = {};
const lentRows = {};
const taskCards = new Map();

function build() {
  figures.cpu = figure('figure-cpu', 'CPU', true);
  figures.memory = figure('figure-memory', 'Memory', true);
  figures.disk = figure('figure-disk', 'Disk', true);
  figures.network = figure('figure-network', 'Network', false);
  for (const [key, label] of [['cpu', 'CPU'], ['memory', 'Memory'], ['disk', 'Disk'], ['slots', 'Slots']]) {
    lentRows[key] = meterRow(label, true);
    byId('lent').append(lentRows[key].box);
  }
  for (const button of document.querySelectorAll('button[data-action]')) {
    button.addEventListener('click', () => act(button.dataset.action, button, questions[button.dataset.action]));
  }
  byId('search').addEventListener('input', () => snapshot && showHistory(snapshot.history));
}

// --- showing ---

const STATE_LOOK = { ready: 'good', busy: 'busy', paused: 'warn', draining: 'warn', degraded: 'bad' };

function show(next) {
  snapshot = next;
  lastHeard = Date.now();
  remember(next.host);
  say(byId('node-id'), next.node_id);
  document.title = `${next.state} · HiveMind ${next.node_id}`;
  say(byId('state'), next.state);
  byId('state').className = `badge ${STATE_LOOK[next.state] || ''}`;
  say(byId('state-reason'), next.state_reason);
  say(byId('master'), masterText(next));
  say(byId('engine'), `${next.engine.is_usable ? '' : 'not usable: '}${next.engine.detail}`);
  const machine = next.machine;
  const parts = [machine.hostname, `${machine.os} ${machine.arch}`, machine.kernel, machine.cpu_model,
    `${machine.cpus} CPUs, ${bytes(machine.memory_bytes)}`];
  say(byId('machine'), parts.filter((part) => part).join(' · '));
  say(byId('uptime'), next.started_ms ? when(next.started_ms) : 'unknown');
  say(byId('version'), next.version);
  say(byId('as-of'), `As of ${new Date(lastHeard).toLocaleTimeString()}`);
  showAlerts(next.alerts);
  showFigures(next.host);
  showLent(next.lent, next.promised);
  showTasks(next.attempts);
  if (next.is_standalone) askMaster();
  showHistory(next.history);
}

function masterText(next) {
  const where = next.is_standalone ? 'in this process' : next.master.url || 'none set';
  const state = next.master.is_connected ? 'connected' : 'not connected';
  const parts = [where, state, next.master.detail];
  if (next.master.failed_calls > 0) parts.push(`${next.master.failed_calls} failed calls`);
  return parts.filter((part) => part).join(' · ');
}

function remember(host) {
  const before = samples[samples.length - 1];
  const now = Date.now();
  const known = host.memory_total_bytes !== null && host.memory_available_bytes !== null;
  const used = known ? host.memory_total_bytes - host.memory_available_bytes : null;
  const rate = (value, old) => {
    const seconds = before ? (now - before.at) / 1000 : 0;
    const usable = value !== null && before && old !== null && value >= old && seconds > 0;
    return usable ? (value - old) / seconds : null;
  };
  const isSame = before && before.received === host.network_received_bytes && before.sent === host.network_sent_bytes
    && before.cpu === host.cpu_percent && before.used === used && before.free === host.disk_free_bytes;
  if (isSame && now - before.at < 5000) return;
  samples.push({
    at: now,
    cpu: host.cpu_percent,
    used,
    memory: share(used, host.memory_total_bytes),
    free: host.disk_free_bytes,
    disk: host.disk_free_bytes === null ? null : share(host.disk_total_bytes - host.disk_free_bytes, host.disk_total_bytes),
    received: host.network_received_bytes,
    sent: host.network_sent_bytes,
    receivedRate: rate(host.network_received_bytes, before && before.received),
    sentRate: rate(host.network_sent_bytes, before && before.sent),
  });
  samples = samples.slice(-MOST_SAMPLES);
}

function showFigures(host) {
  const now = samples[samples.length - 1];
  const { cpu, memory, disk, network } = figures;
  say(cpu.big, percent(now.cpu));
  setTrack(cpu.bar, now.cpu, percent(now.cpu));
  say(cpu.note, `${host.cpus} CPUs${host.load_1m === null ? '' : `, load ${host.load_1m.toFixed(2)}`}`);
  drawSpark(cpu.chart, [(sample) => sample.cpu], 100);
  say(memory.big, percent(now.memory));
  setTrack(memory.bar, now.memory, percent(now.memory));
  say(memory.note, now.used === null ? 'unknown' : `${bytes(now.used)} of ${bytes(host.memory_total_bytes)}`);
  drawSpark(memory.chart, [(sample) => sample.memory], 100);
  say(disk.big, percent(now.disk));
  setTrack(disk.bar, now.disk, percent(now.disk));
  say(disk.note, `${bytes(host.disk_free_bytes)} free of ${bytes(host.disk_total_bytes)}`);
  drawSpark(disk.chart, [(sample) => sample.disk], 100);
  const rate = (value) => (value === null ? '–' : `${bytes(value)}/s`);
  say(network.big.firstChild, `${rate(now.receivedRate)} in`);
  say(network.big.lastChild, `${rate(now.sentRate)} out`);
  say(network.note, `${bytes(host.network_received_bytes)} received, ${bytes(host.network_sent_bytes)} sent since boot`);
  const most = Math.max(1024, ...samples.map((sample) => Math.max(sample.receivedRate || 0, sample.sentRate || 0)));
  drawSpark(network.chart, [(sample) => sample.receivedRate, (sample) => sample.sentRate], most);
}

function showLent(lent, promised) {
  const rows = [
    ['cpu', promised.cpu_millis, lent.cpu_millis, `${cores(promised.cpu_millis)} of ${cores(lent.cpu_millis)} CPUs`],
    ['memory', promised.memory_bytes, lent.memory_bytes, `${bytes(promised.memory_bytes)} of ${bytes(lent.memory_bytes)}`],
    ['disk', promised.disk_bytes, lent.disk_bytes, `${bytes(promised.disk_bytes)} of ${bytes(lent.disk_bytes)}`],
    ['slots', promised.slots, lent.slots, `${promised.slots} of ${lent.slots}`],
  ];
  for (const [key, part, whole, text] of rows) lentRows[key].set(share(part, whole), text);
}

function showAlerts(alerts) {
  byId('alerts-card').hidden = alerts.length === 0;
  byId('alerts').replaceChildren(...alerts.map((alert) => make('li', '', alert)));
}

function taskCard(task) {
  const card = make('article', 'card task');
  const lead = make('div', 'lead');
  const words = make('div');
  const phase = make('span', 'badge busy');
  const what = make('p', 'what');
  const title = make('h3', '', `${task.task} #${task.attempt} `);
  title.append(phase);
  words.append(title, what);
  const stop = make('button', 'danger', 'Stop');
  stop.type = 'button';
  stop.setAttribute('aria-label', `Stop ${task.task} attempt ${task.attempt}`);
  const path = `tasks/${encodeURIComponent(task.task)}/${task.attempt}/stop`;
  stop.addEventListener('click', () => act(path, stop, `Stop ${task.task} #${task.attempt}? What it has done so far is lost.`));
  lead.append(words, stop);
  const uses = make('div', 'uses');
  const rows = { cpu: meterRow('CPU', true), memory: meterRow('Memory', false), time: meterRow('Time', false) };
  uses.append(rows.cpu.box, rows.memory.box, rows.time.box);
  const output = make('details');
  output.open = true;
  const text = make('pre');
  text.tabIndex = 0;
  text.setAttribute('aria-label', `Last output of ${task.task}`);
  output.append(make('summary', '', 'Last output'), text);
  card.append(lead, uses, output);
  return { card, phase, what, rows, text };
}

function showTasks(tasks) {
  const here = new Set();
  let place = byId('tasks').firstChild;
  for (const task of tasks) {
    const key = `${task.task}#${task.attempt}`;
    here.add(key);
    if (!taskCards.has(key)) taskCards.set(key, taskCard(task));
    const shown = taskCards.get(key);
    if (shown.card === place) place = place.nextSibling;
    else byId('tasks').insertBefore(shown.card, place);
    showTask(shown, task);
  }
  for (const [key, shown] of taskCards) {
    if (!here.has(key)) { shown.card.remove(); taskCards.delete(key); }
  }
  say(byId('task-count'), String(tasks.length));
  byId('no-tasks').hidden = tasks.length > 0;
}

function showTask(shown, task) {
  say(shown.phase, task.phase);
  shown.phase.className = `badge ${{ running: 'good', paused: 'warn', stopping: 'warn' }[task.phase] || 'busy'}`;
  const words = [task.detail, task.image, `owner ${task.owner}`, `priority ${task.priority}`, `${task.usage.pids} processes`];
  say(shown.what, words.filter((part) => part).join(' · '));
  const { cpu, memory, time } = shown.rows;
  const used = task.cpu_percent;
  const limit = task.limits.cpu_millis / 10;
  cpu.set(share(used, limit), used === null ? `limit ${cores(task.limits.cpu_millis)} CPUs`
    : `${(used / 100).toFixed(2)} of ${cores(task.limits.cpu_millis)} CPUs`);
  memory.set(share(task.usage.memory_bytes, task.limits.memory_bytes),
    `${bytes(task.usage.memory_bytes)} of ${bytes(task.limits.memory_bytes)}`);
  time.set(share(task.running_ms, task.timeout_ms), `${duration(task.running_ms)} of ${duration(task.timeout_ms)}`);
  const text = shown.text;
  const isAtEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 24;
  say(text, task.tail === '' ? 'nothing yet' : task.tail);
  if (isAtEnd) text.scrollTop = text.scrollHeight;
}

function historyRow(row) {
  const line = make('tr');
  const look = row.outcome === 'Succeeded' ? 'good-text'
    : ['Cancelled', 'Preempted', 'Superseded'].includes(row.outcome) ? 'warn-text' : 'bad-text';
  line.append(
    make('td', 'name', `${row.task} #${row.attempt}`),
    make('td', look, row.outcome),
    make('td', 'number', row.exit_code === null ? '–' : String(row.exit_code)),
    make('td', 'number', row.usage === null ? '–' : duration(row.duration_ms)),
    make('td', 'number', row.usage === null ? '–' : duration(row.usage.cpu_ms)),
    make('td', 'number', row.usage === null ? '–' : bytes(row.usage.peak_memory_bytes || null)),
    make('td', 'number', row.output_files === 0 ? '–' : `${row.output_files}, ${bytes(row.output_bytes)}`),
    make('td', '', when(row.finished_ms)),
    make('td', 'words', row.reason),
  );
  return line;
}

// --- what only the small master knows ---

const MOST_WAITING = 100;
let atMaster = [];
let atMasterAsked = 0;

// The event stream has the node's own attempts; these are asked for beside it.
async function askMaster() {
  if (Date.now() - atMasterAsked < POLL_MS) return;
  atMasterAsked = Date.now();
  try {
    const path = `/api/v1/submissions?at=master&limit=${2 * MOST_WAITING}`;
    const answer = await fetch(path, { headers: headers(), cache: 'no-store' });
    if (!answer.ok) return;
    atMaster = (await answer.json()).submissions;
    showWaiting(atMaster.filter((view) => view.final_report === null));
    if (snapshot) showHistory(snapshot.history);
  } catch {
    // The link says that the node can't be reached.
  }
}

function showWaiting(waiting) {
  const rows = waiting.slice(0, MOST_WAITING).map((view) => {
    const line = make('tr');
    line.append(
      make('td', 'name', `${view.task} #${view.attempt}`),
      make('td', '', view.phase),
      make('td', '', when(view.submitted_ms)),
      make('td', 'number', cores(view.limits.cpu_millis)),
      make('td', 'number', bytes(view.limits.memory_bytes)),
      make('td', 'words', view.waits || ''),
    );
    return line;
  });
  byId('waiting-rows').replaceChildren(...rows);
  say(byId('waiting-count'), waiting.length > MOST_WAITING ? `over ${MOST_WAITING}` : String(waiting.length));
  byId('waiting-card').hidden = waiting.length === 0;
}

// In the form of a row of history; it never ran.
function endedAtMaster(view) {
  return {
    task: view.task,
    attempt: view.attempt,
    owner: '',
    image: '',
    outcome: view.final_report.outcome,
    exit_code: null,
    reason: view.final_report.reason,
    usage: null,
    duration_ms: null,
    finished_ms: view.finished_ms,
    output_files: 0,
    output_bytes: 0,
  };
}

let historyShown = '';

function showHistory(ofNode) {
  const ended = atMaster.filter((view) => view.final_report !== null).map(endedAtMaster);
  const history = ofNode.concat(ended).sort((one, other) => other.finished_ms - one.finished_ms);
  const wanted = byId('search').value.trim().toLowerCase();
  const text = (row) => `${row.task} #${row.attempt} ${row.outcome} ${row.owner} ${row.image} ${row.reason}`;
  const rows = history.filter((row) => text(row).toLowerCase().includes(wanted));
  const key = JSON.stringify(rows.map((row) => [row.task, row.attempt, row.finished_ms]));
  if (key === historyShown) return;
  historyShown = key;
  byId('history-rows').replaceChildren(...rows.map(historyRow));
  byId('history').hidden = rows.length === 0;
  byId('no-history').hidden = rows.length > 0;
  say(byId('no-history'), history.length === 0 ? 'Nothing has ended yet.' : 'Nothing matches.');
}

// --- actions ---

const questions = {
  pause: 'Pause the node? Running tasks freeze until you resume it.',
  drain: 'Drain the node? It takes no new tasks; running ones go on.',
};

function tell(text, isBad) {
  say(byId('said'), text);
  byId('said').className = isBad ? 'said bad' : 'said';
}

async function act(path, button, question) {
  if (!token()) { tell(HOW_TO_GET_TOKEN, true); return; }
  if (question && !window.confirm(question)) return;
  button.disabled = true;
  try {
    const answer = await fetch(`/api/v1/${path}`, { method: 'POST', headers: headers() });
    if (answer.ok) {
      tell(`The node was told to ${button.textContent.toLowerCase()}.`, false);
    } else {
      const body = await answer.json().catch(() => ({}));
      if (answer.status === 403 || answer.status === 401) sessionStorage.removeItem(TOKEN_KEY);
      tell(body.error || `The node answered ${answer.status}.`, true);
    }
  } catch {
    tell('The node can’t be reached.', true);
  } finally {
    button.disabled = false;
  }
}

// --- the link to the node ---

function setLink(look, text) {
  byId('link').className = `link ${look}`;
  say(byId('link'), text);
}

async function poll() {
  try {
    const answer = await fetch('/api/v1/status', { headers: headers(), cache: 'no-store' });
    if (answer.ok) {
      show(await answer.json());
      setLink('good', 'polling');
    } else if (answer.status === 401 || answer.status === 403) {
      setLink('bad', 'token needed');
      tell(HOW_TO_GET_TOKEN, true);
    } else {
      setLink('warn', `the node answered ${answer.status}`);
    }
  } catch {
    setLink('bad', 'no connection to the node');
  }
}

function startPolling() {
  if (polling === null) {
    polling = setInterval(poll, POLL_MS);
    poll();
  }
}

function connect() {
  if (!('EventSource' in window)) { startPolling(); return; }
  const source = new EventSource('/api/v1/events');
  source.addEventListener('snapshot', (event) => {
    show(JSON.parse(event.data));
    setLink('good', 'live');
  });
  source.addEventListener('error', () => {
    // A stream that broke is tried again by the browser; one that was refused is not, and then it is polled.
    if (source.readyState === EventSource.CLOSED) startPolling();
    else setLink('bad', 'no connection to the node');
  });
}

takeToken();
window.addEventListener('hashchange', takeToken);
build();
connect();
