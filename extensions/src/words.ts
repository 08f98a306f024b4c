/** Sentences that more than one view says, made of a state. */
import type { TranslationBundle } from '@jupyterlab/translation';

import * as format from './format';
import { costNow, type IState, lastSeenUs, leftUs, present } from './state';

/** What to show now, every number as text; null where there is none. */
export interface IReading {
  readonly title: string;
  readonly memory: string | null;
  /** 0 to 1. */
  readonly memoryShare: number | null;
  readonly memoryReason: string | null;
  readonly utilisation: string | null;
  readonly utilisationShare: number | null;
  readonly utilisationReason: string | null;
  readonly cost: string | null;
  readonly rate: string | null;
  /** How long until a limit stops the server: short, and as a sentence. */
  readonly left: string | null;
  readonly ends: string | null;
  readonly simulated: boolean;
  /** What is wrong or will happen, a sentence each, the most important first. */
  readonly remarks: readonly string[];
}

/** From this share on memory is called nearly full. */
export const NEARLY_FULL = 0.9;

/** The language of the page, which numbers should be in, too. */
export function locale(): string | undefined {
  return document.documentElement.lang || undefined;
}

export function reading(state: IState, browserUs: number, trans: TranslationBundle): IReading {
  const language = locale();
  const { bill, device } = state;
  const row = present(state, browserUs);
  const total = device?.memory_total ?? null;
  const used = row?.memory ?? null;
  const busy = row?.utilisation ?? null;
  const away = state.problem !== null;
  const waiting =
    row !== null ? null : away ? trans.__('not known at the moment') : trans.__('being measured');
  const none = device?.kind === 'none';
  return {
    title: bill?.title ?? device?.label ?? trans.__('GPU'),
    memory:
      used === null
        ? null
        : total === null
          ? format.memory(used, language)
          : format.ofTotal(used, total, language, trans),
    memoryShare: used === null || !total ? null : used / total,
    memoryReason: none ? null : (waiting ?? device?.memory_reason ?? null),
    utilisation: busy === null ? null : format.percent(busy, language),
    utilisationShare: busy === null ? null : busy / 100,
    utilisationReason: none ? null : (waiting ?? device?.utilisation_reason ?? null),
    cost: costText(state, browserUs, trans),
    rate: bill
      ? trans.__('%1 per hour', format.price(bill.rate_u_per_hour, bill.currency, language))
      : null,
    ...ending(state, browserUs, trans),
    simulated: Boolean(device?.simulated || bill?.simulated),
    remarks: remarks(state, browserUs, trans)
  };
}

function ending(
  state: IState,
  browserUs: number,
  trans: TranslationBundle
): Pick<IReading, 'left' | 'ends'> {
  const us = leftUs(state, browserUs);
  const { bill } = state;
  if (us === null || bill === null || bill.deadline_us === null) {
    return { left: null, ends: null };
  }
  const at = time(state, bill.deadline_us);
  const ends = bill.deadline_reason
    ? trans.__('As things are it is stopped at %1: %2', at, bill.deadline_reason)
    : trans.__('As things are it is stopped at %1.', at);
  return { left: trans.__('%1 left', format.duration(us, trans)), ends };
}

/** A number that is not of now always carries its time. */
function costText(state: IState, browserUs: number, trans: TranslationBundle): string | null {
  const cost = costNow(state, browserUs);
  if (cost === null || state.bill === null) {
    return null;
  }
  const text = format.money(cost.micro, state.bill.currency, locale());
  return cost.asOfUs === null ? text : trans.__('%1 as of %2', text, time(state, cost.asOfUs));
}

function remarks(state: IState, browserUs: number, trans: TranslationBundle): string[] {
  const { bill, billProblem, device, problem } = state;
  const found: (string | null)[] = [];
  if (bill?.stop_requested_us) {
    const at = time(state, bill.stop_requested_us);
    found.push(
      bill.stop_reason
        ? trans.__('Being stopped since %1: %2', at, bill.stop_reason)
        : trans.__('Being stopped since %1.', at)
    );
  }
  const seen = lastSeenUs(state, browserUs);
  if (problem !== null) {
    found.push(seen === null ? problem : trans.__('As of %1: %2', time(state, seen), problem));
  }
  found.push(device?.problem ?? null);
  if (billProblem !== null) {
    found.push(
      bill ? trans.__('As of %1: %2', time(state, bill.heard_us), billProblem) : billProblem
    );
  }
  return found.filter((remark): remark is string => remark !== null);
}

/** A time of the server's clock, as the browser's clock would have shown it. */
function time(state: IState, serverUs: number): string {
  return format.clock(serverUs - state.offsetUs, locale());
}
