// My GPU: memory, utilisation and cost move; the layout comes from the server when a state changes.
import { getJson, refreshPage, whileVisible } from "./live.js";

const POLL_MS = 5_000;
const REFRESH_EVERY = 6; // polls: what is free, and the queue, change by others' doing
const OLD_US = 60e6; // numbers older than this are said to be old, and the cost stands still
const HOUR_US = 3_600e6;
const NOT_AVAILABLE = "not available";

/** The last answer, and this page's clock when it came: the service's clock counts, not ours. */
let last = null;
let polls = 0;

function memory(bytes) {
  for (const [unit, size] of [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]])
    if (bytes >= size) return `${(bytes / size).toFixed(1).replace(/\.0$/, "")} ${unit}`;
  return `${bytes} B`;
}

const clock = (us) => `${new Date(us / 1e3).toISOString().slice(0, 19).replace("T", " ")} UTC`;

function put(card, name, value) {
  const field = card.querySelector(`[data-field="${name}"]`);
  if (field && field.textContent !== value) field.textContent = value;
}

function bar(card, name, value, most) {
  const field = card.querySelector(`[data-field="${name}"]`);
  if (!field) return;
  if (most) field.max = most;
  field.value = value ?? 0;
}

function whyNoUse(lease, age) {
  if (lease.device_uuid === null) return "";
  if (lease.state !== "running") return "Live numbers come when the server runs.";
  if (lease.use === null) return "The GPU host has not measured this server yet.";
  if (age > OLD_US) return `The GPU host has sent no numbers since ${clock(lease.use.sampled_us)}.`;
  return lease.use.reason ?? "";
}

function showUse(card, lease, now) {
  const use = lease.use;
  const used = use?.memory_used_bytes ?? null;
  const percent = use?.utilisation_percent ?? null;
  const age = use ? now - use.sampled_us : 0;
  put(card, "memory", used === null ? NOT_AVAILABLE : memory(used));
  bar(card, "memory-bar", used, lease.memory_bytes);
  put(card, "utilisation", percent === null ? NOT_AVAILABLE : `${percent} %`);
  bar(card, "utilisation-bar", percent);
  put(card, "why", whyNoUse(lease, age));
  card.classList.toggle("gs-stale", age > OLD_US);
}

/** What a lease costs at a moment: what is billed, and since then its price, while it runs. */
function costAt(lease, now) {
  const since = lease.covered_us;
  const runs = lease.state === "running" && lease.stop_requested_us === null;
  if (since === null || !runs || now - since > OLD_US) return { cost: lease.cost_u, at: since };
  const ahead = Math.max(0, now - since);
  return { cost: lease.cost_u + Math.floor((lease.rate_u_per_hour * ahead) / HOUR_US), at: now };
}

function showCosts() {
  if (last === null || document.visibilityState !== "visible") return;
  const now = last.me.now_us + (performance.now() - last.came) * 1e3;
  for (const lease of last.me.leases) {
    const card = cardOf(lease);
    if (!card) continue;
    const { cost, at } = costAt(lease, now);
    put(card, "cost", `${(cost / 1e6).toFixed(4)} ${lease.currency}`);
    put(card, "as-of", at === null ? "nothing is billed yet" : `as of ${clock(at)}`);
  }
}

const cardOf = (lease) => document.querySelector(`[data-lease="${CSS.escape(lease.lease_id)}"]`);
const shape = (lease) =>
  `${lease.lease_id} ${lease.state}${lease.stop_requested_us === null ? "" : "-stop"}`;

function layoutIsOld(me) {
  const shown = [...document.querySelectorAll("[data-lease]")];
  const have = shown.map((card) => `${card.dataset.lease} ${card.dataset.state}`).sort().join();
  return have !== me.leases.map(shape).sort().join();
}

async function poll() {
  const me = await getJson("api/me");
  last = { me, came: performance.now() };
  if (layoutIsOld(me)) await refreshPage();
  else if (++polls % REFRESH_EVERY === 0) await refreshPage(["troubles", "queue", "used", "offers", "as-of"]);
  for (const lease of me.leases) {
    const card = cardOf(lease);
    if (card) showUse(card, lease, me.now_us);
  }
  showCosts();
}

whileVisible(POLL_MS, poll);
setInterval(showCosts, 1_000);
