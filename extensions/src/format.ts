/** Numbers as people read them, in a locale. Pure. */
import type { TranslationBundle } from '@jupyterlab/translation';

const MICRO = 1e6;
const UNITS: readonly (readonly [string, number])[] = [
  ['TiB', 2 ** 40],
  ['GiB', 2 ** 30],
  ['MiB', 2 ** 20],
  ['KiB', 2 ** 10]
];

function number(value: number, locale: string | undefined, digits: number) {
  return new Intl.NumberFormat(locale, {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits
  }).format(value);
}

/** The binary unit that a size is read best in. */
export function unitOf(bytes: number): readonly [string, number] {
  return UNITS.find(([, step]) => bytes >= step) ?? ['B', 1];
}

/** "6.2 GiB"; `unit` is given where two sizes are compared. */
export function memory(bytes: number, locale?: string, unit = unitOf(bytes)): string {
  return `${memoryNumber(bytes, locale, unit)} ${unit[0]}`;
}

/** "6.2": whole numbers above 100, where a tenth tells nothing. */
export function memoryNumber(
  bytes: number,
  locale: string | undefined,
  unit: readonly [string, number]
): string {
  const value = bytes / unit[1];
  const whole = unit[1] === 1 || value >= 100 || Number.isInteger(value);
  return number(value, locale, whole ? 0 : 1);
}

/** "6.2 of 24 GiB". */
export function ofTotal(
  used: number,
  total: number,
  locale: string | undefined,
  trans: TranslationBundle
): string {
  const unit = unitOf(total);
  return trans.__('%1 of %2', memoryNumber(used, locale, unit), memory(total, locale, unit));
}

export function percent(value: number, locale?: string): string {
  return new Intl.NumberFormat(locale, {
    style: 'percent',
    maximumFractionDigits: 0
  }).format(value / 100);
}

/** "2.75 EUR" from micro-units, as on every page of the platform. Small amounts get more digits, so that they are seen to move. */
export function money(
  micro: number,
  currency: string,
  locale?: string,
  digits = Math.abs(micro) < MICRO ? 4 : 2
): string {
  return `${number(micro / MICRO, locale, digits)} ${currency}`;
}

/** A price, exactly as far as four digits: "0.875 EUR" is not "0.88 EUR". */
export function price(micro: number, currency: string, locale?: string): string {
  const text = new Intl.NumberFormat(locale, {
    minimumFractionDigits: 2,
    maximumFractionDigits: 4
  }).format(micro / MICRO);
  return `${text} ${currency}`;
}

/** "3 h 20 min", rounded down: nobody is promised more time than there is. */
export function duration(us: number, trans: TranslationBundle): string {
  const minutes = Math.floor(us / 60e6);
  if (minutes < 1) {
    return trans.__('less than a minute');
  }
  const hours = Math.floor(minutes / 60);
  const rest = String(minutes % 60);
  return hours === 0 ? trans.__('%1 min', rest) : trans.__('%1 h %2 min', String(hours), rest);
}

/** "10:32" in the browser's time zone. */
export function clock(us: number, locale?: string): string {
  return new Intl.DateTimeFormat(locale, {
    hour: '2-digit',
    minute: '2-digit'
  }).format(new Date(us / 1000));
}
