// Keeps a page fresh without reloading it: asks while the tab is visible, swaps parts of the page.

const main = document.querySelector("main.gs");

/** The service's prefix, as the page was told it. */
export const prefix = main.dataset.prefix;

/** A refusal of the service, or a sentence of ours when nothing answered. */
export class Trouble extends Error {}

const AWAY =
  "The service does not answer. Running servers go on and so do their bills; " +
  "numbers below are the last that were seen.";
const LOGGED_OUT = "Your login has ended. Reload this page to log in again.";

async function ask(url) {
  let answer;
  try {
    answer = await fetch(url, {
      headers: { "X-XSRFToken": main.dataset.xsrf },
      redirect: "manual",
      cache: "no-store",
      signal: AbortSignal.timeout(15_000),
    });
  } catch {
    throw new Trouble(AWAY);
  }
  if (answer.type === "opaqueredirect" || answer.status === 401 || answer.status === 403)
    throw new Trouble(LOGGED_OUT);
  return answer;
}

/** JSON from a path below the prefix; a refusal becomes a Trouble with its message. */
export async function getJson(path) {
  const answer = await ask(prefix + path);
  const body = await answer.json().catch(() => null);
  if (!answer.ok || body === null) throw new Trouble(body?.message ?? AWAY);
  return body;
}

/** Fetch this page again and swap the parts marked data-live, but none that somebody is using. */
export async function refreshPage(only) {
  const answer = await ask(location.href);
  if (!answer.ok) throw new Trouble(AWAY);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    if (only && !only.includes(part.id)) continue;
    const next = fresh.getElementById(part.id);
    if (next && !inUse(part)) part.replaceWith(document.adoptNode(next));
  }
}

function inUse(part) {
  const writing = part.contains(document.activeElement) &&
    document.activeElement.matches("input, select, button, summary, a");
  return writing || part.querySelector("details[open]") !== null;
}

/** Show a sentence above everything, or take it away. */
export function say(sentence) {
  const place = document.getElementById("trouble");
  if (place.textContent !== sentence) place.textContent = sentence;
  place.hidden = sentence === "";
}

/** Call `work` now and every `ms`, one at a time, while the tab is visible; say what goes wrong. */
export function whileVisible(ms, work) {
  let timer = null;
  let busy = false;
  const turn = async () => {
    if (busy) return;
    busy = true;
    try {
      await work();
      say("");
    } catch (error) {
      if (!(error instanceof Trouble)) throw error;
      say(error.message);
    } finally {
      busy = false;
    }
  };
  const follow = () => {
    clearInterval(timer);
    timer = null;
    if (document.visibilityState !== "visible") return;
    timer = setInterval(turn, ms);
    turn();
  };
  document.addEventListener("visibilitychange", follow);
  follow();
}
