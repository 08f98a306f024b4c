/** How full the home is: what to say of it, and when to say it unasked. Pure but for the store. */
import type { TranslationBundle } from '@jupyterlab/translation';

import * as format from './format';
import type { Store } from './notices';

/** What `GET home` answers. */
export interface IHome {
  readonly source: 'quota' | 'counted' | 'counting' | 'unknown' | 'none';
  readonly used_bytes: number | null;
  readonly limit_bytes: number | null;
  readonly free_bytes: number | null;
  /** The limit is the room on a disk that others use, too. */
  readonly of_disk: boolean;
  /** There is more than was counted. */
  readonly at_least: boolean;
  readonly taken_us: number | null;
  readonly warn: boolean;
}

/** How urgent it is: not, nearly full, full. */
export type Level = 0 | 1 | 2;

const FULL = 0.99;
/** Below which share a level has been left: lower than where it began, so not at every byte anew. */
const LEFT: readonly number[] = [0, 0.85, 0.94];

export function isHome(value: unknown): value is IHome {
  return (
    typeof value === 'object' &&
    value !== null &&
    'source' in value &&
    typeof value.source === 'string' &&
    'used_bytes' in value &&
    'warn' in value
  );
}

/** 0 to 1 and more; null where it is not known. */
export function share(home: IHome): number | null {
  const { limit_bytes, used_bytes } = home;
  if (used_bytes === null || limit_bytes === null) {
    return null;
  }
  return limit_bytes > 0 ? used_bytes / limit_bytes : 1;
}

export function level(home: IHome): Level {
  if (!home.warn) {
    return 0;
  }
  return (share(home) ?? 0) >= FULL ? 2 : 1;
}

/** Whether to tell the person now: once per crossing upwards, by one tab of the browser. */
export function crossed(home: IHome, store: Store, key: string): boolean {
  const part = share(home);
  if (part === null) {
    return false;
  }
  const now = level(home);
  const told = Number(store.getItem(key));
  const before = told === 1 || told === 2 ? told : 0;
  let after = Math.max(now, before);
  while (after > now && part < (LEFT[after] ?? 0)) {
    after--;
  }
  if (after !== before) {
    // Read and written without a pause between: another tab cannot come in.
    store.setItem(key, String(after));
  }
  return now > before;
}

/** "8.1 of 10 GiB". */
export function fullness(
  home: IHome,
  language: string | undefined,
  trans: TranslationBundle
): string | null {
  const { free_bytes, limit_bytes, of_disk, used_bytes } = home;
  if (used_bytes === null) {
    return null;
  }
  const text =
    of_disk || limit_bytes === null
      ? trans.__(
          '%1 used, %2 free',
          format.memory(used_bytes, language),
          format.memory(free_bytes ?? 0, language)
        )
      : format.ofTotal(used_bytes, limit_bytes, language, trans);
  return home.at_least ? trans.__('at least %1', text) : text;
}

/** What the person should know, short enough for a notification; null while it is nothing. */
export function warning(
  home: IHome,
  language: string | undefined,
  trans: TranslationBundle
): string | null {
  const found = level(home);
  const text = fullness(home, language, trans);
  if (found === 0 || text === null) {
    return null;
  }
  const what = home.of_disk
    ? trans.__('The disk that your home is on is nearly full (%1).', text)
    : found === 1
      ? trans.__('Your home is nearly full (%1).', text)
      : home.source === 'quota'
        ? trans.__('Your home is full (%1).', text)
        : trans.__('Your home has reached its limit (%1).', text);
  // A limit that was only set stops nobody; a disk without room does.
  const then =
    home.of_disk || home.source === 'quota'
      ? trans.__('Delete files, or notebooks cannot be saved.')
      : trans.__('Delete files that you do not need.');
  return `${what} ${then}`;
}

/** What to do then. */
export function advice(home: IHome, trans: TranslationBundle): string {
  const how = trans.__(
    'What you delete here may only move to ~/.local/share/Trash, which counts, too: empty it.'
  );
  const who = home.of_disk
    ? trans.__('Others use this disk, too: tell an administrator.')
    : trans.__('For more room ask an administrator.');
  return `${how} ${who}`;
}
