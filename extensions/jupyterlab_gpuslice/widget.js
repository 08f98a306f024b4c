/** The meter in a cell: asks the notebook server once a second while it is seen. */

const EVERY_MS = 1000;
/** While the server does not answer. */
const AGAIN_MS = 5000;
const GIB = 2 ** 30;

/** The server's address as JupyterLab and Notebook write it into their page; null elsewhere. */
function serverUrl() {
  const config = document.getElementById('jupyter-config-data');
  try {
    const base = JSON.parse(config.textContent).baseUrl;
    return base ? new URL(`${base}gpuslice/api/sample`, location.href) : null;
  } catch {
    return null;
  }
}

function xsrf() {
  return document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)?.[1] ?? '';
}

function gib(bytes) {
  return (bytes / GIB).toFixed(bytes >= 100 * GIB ? 0 : 1);
}

function money(micro, currency) {
  const digits = micro < 1e6 ? 4 : 2;
  return `${(micro / 1e6).toFixed(digits)} ${currency}`;
}

/** Not rounded: 0.875 is not 0.88. */
function price(micro, currency) {
  const text = (micro / 1e6).toFixed(4).replace(/(\.\d\d\d?)0+$/, '$1');
  return `${text.replace(/(\.\d\d)0$/, '$1')} ${currency}`;
}

/** The server's answer as one reading; what was known of the device stays. */
function asReading(answer, before) {
  const row = answer.rows.at(-1);
  const device = answer.device ?? before.device;
  const { bill } = answer;
  if (!device || !row) {
    return { ...before, boot: answer.boot, device };
  }
  return {
    boot: answer.boot,
    sequence: row[0],
    device,
    label: bill?.title ?? device.label,
    simulated: device.simulated || Boolean(bill?.simulated),
    memory: row[2],
    memory_total: device.memory_total,
    memory_reason: device.memory_reason,
    utilisation: row[3],
    utilisation_reason: device.utilisation_reason,
    cost: row[4],
    currency: bill?.currency,
    rate: bill?.rate_u_per_hour,
    problem: device.problem ?? answer.bill_problem
  };
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) {
    made.textContent = text;
  }
  return made;
}

function bar(name, share, text) {
  const outer = element('div', 'gpuslice-meter-bar');
  const inner = element('div', '');
  inner.style.width = `${Math.min(100, Math.max(0, share * 100))}%`;
  outer.append(inner);
  outer.dataset.full = String(share >= 0.9);
  for (const [key, value] of Object.entries({
    role: 'meter',
    'aria-label': name,
    'aria-valuemin': 0,
    'aria-valuemax': 100,
    'aria-valuenow': Math.round(share * 100),
    'aria-valuetext': text
  })) {
    outer.setAttribute(key, value);
  }
  return outer;
}

function line(name, share, text) {
  const row = element('div', 'gpuslice-meter-row');
  row.append(element('span', 'gpuslice-meter-name', name));
  if (share !== null) {
    row.append(bar(name, share, text));
  }
  row.append(element('span', 'gpuslice-meter-text', text));
  return row;
}

function draw(el, reading) {
  const { label, memory, memory_total: total, problem, utilisation } = reading;
  const head = element('div', 'gpuslice-meter-head', label ?? 'GPU');
  if (reading.simulated) {
    head.append(element('span', 'gpuslice-meter-simulated', 'Simulated'));
  }
  const rows = [head];
  if (memory !== null && memory !== undefined) {
    const text = total ? `${gib(memory)} of ${gib(total)} GiB` : `${gib(memory)} GiB`;
    rows.push(line('Memory', total ? memory / total : null, text));
  } else if (reading.memory_reason && reading.memory_reason !== problem) {
    rows.push(line('Memory', null, reading.memory_reason));
  }
  if (utilisation !== null && utilisation !== undefined) {
    const text = `${Math.round(utilisation)} %`;
    rows.push(line('Utilisation', utilisation / 100, text));
  } else if (reading.utilisation_reason && reading.utilisation_reason !== problem) {
    rows.push(line('Utilisation', null, reading.utilisation_reason));
  }
  if (typeof reading.cost === 'number') {
    const rate = price(reading.rate, reading.currency);
    const cost = money(reading.cost, reading.currency);
    rows.push(line('Cost', null, `${cost} so far, ${rate} per hour`));
  }
  if (problem) {
    rows.push(element('div', 'gpuslice-meter-problem', problem));
  }
  el.replaceChildren(...rows);
}

function render({ model, el }) {
  el.classList.add('gpuslice-meter');
  const url = serverUrl();
  let reading = {};
  let timer = 0;
  let seen = false;
  let asking = false;
  let ended = false;

  async function ask() {
    url.searchParams.set('since', String(reading.sequence ?? 0));
    const answer = await fetch(url, {
      credentials: 'same-origin',
      headers: { 'X-XSRFToken': xsrf() }
    });
    if (!answer.ok) {
      throw new Error(String(answer.status));
    }
    const body = await answer.json();
    const before = body.boot === reading.boot ? reading : {};
    reading = asReading(body, before);
    draw(el, reading);
  }

  function askKernel() {
    model.set('looks', model.get('looks') + 1);
    model.save_changes();
  }

  async function tick() {
    window.clearTimeout(timer);
    if (ended || asking || !seen || document.hidden) {
      return;
    }
    asking = true;
    let wait = EVERY_MS;
    try {
      if (url === null) {
        askKernel();
        wait = AGAIN_MS;
      } else {
        await ask();
      }
    } catch {
      wait = AGAIN_MS;
      const at = new Date().toLocaleTimeString([], {
        hour: '2-digit',
        minute: '2-digit'
      });
      // Numbers that may be old are not left standing.
      draw(el, {
        label: reading.label,
        simulated: reading.simulated,
        problem: `${at}: the notebook server does not answer.`
      });
    }
    asking = false;
    timer = window.setTimeout(() => void tick(), wait);
  }

  const fromKernel = () => draw(el, model.get('reading'));
  if (url === null) {
    model.on('change:reading', fromKernel);
  }
  const watcher = new IntersectionObserver(entries => {
    seen = entries.at(-1).isIntersecting;
    void tick();
  });
  const onVisible = () => void tick();
  watcher.observe(el);
  document.addEventListener('visibilitychange', onVisible);
  draw(el, { label: 'GPU', memory_reason: 'being measured' });
  return () => {
    ended = true;
    window.clearTimeout(timer);
    watcher.disconnect();
    document.removeEventListener('visibilitychange', onVisible);
    model.off('change:reading', fromKernel);
  };
}

export default { render };
