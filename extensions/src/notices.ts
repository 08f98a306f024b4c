/** Which notices a tab shows: each once per browser, not once per tab. Pure but for the store. */

export interface INotice {
  readonly id: number;
  readonly lease_id: string | null;
  readonly kind: string;
  readonly severity: 'info' | 'warning' | 'error';
  readonly message: string;
  readonly created_us: number;
}

export type Store = Pick<Storage, 'getItem' | 'setItem'>;

/** Whoever opens a tab for the first time is not told what is long past. */
const OLD_US = 3600e6;

export function isNotices(value: unknown): value is INotice[] {
  return Array.isArray(value) && value.every(isNotice);
}

function isNotice(value: unknown): value is INotice {
  return (
    typeof value === 'object' &&
    value !== null &&
    'id' in value &&
    typeof value.id === 'number' &&
    'message' in value &&
    typeof value.message === 'string'
  );
}

/** The newest notice that some tab of this browser has shown. */
export function lastShown(store: Store, key: string): number {
  const last = Number(store.getItem(key));
  return Number.isSafeInteger(last) && last > 0 ? last : 0;
}

/** Takes those that no tab has shown yet; whoever takes them shows them. */
export function claimed(
  notices: readonly INotice[],
  store: Store,
  key: string,
  browserUs: number
): INotice[] {
  const last = lastShown(store, key);
  const fresh = notices.filter(notice => notice.id > last);
  const most = Math.max(last, ...fresh.map(notice => notice.id));
  if (most > last) {
    // Read and written without a pause between: another tab cannot come in.
    store.setItem(key, String(most));
  }
  return fresh.filter(notice => last > 0 || browserUs - notice.created_us < OLD_US);
}

/** Whether it stays until somebody has seen it: a warning, and a turn that passes unless taken. */
export function stays(notice: INotice): boolean {
  return notice.severity !== 'info' || notice.kind === 'offer';
}

/** Whether *keep* is an answer to it: the slice is about to go because it is idle. */
export function canKeep(notice: INotice): boolean {
  return notice.lease_id !== null && notice.kind.includes('idle');
}
