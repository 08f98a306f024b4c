/** What the server answers about starter notebooks, checked before it is used. */

export interface IStarter {
  readonly name: string;
  readonly title: string;
  readonly description: string;
}

/** The starters of a list's answer; none when it is no such answer. */
export function startersOf(answer: unknown): readonly IStarter[] {
  const found = field(answer, 'starters');
  return Array.isArray(found) ? found.filter(isStarter) : [];
}

/** Where the copy is, below the folder of the server's files. */
export function pathOf(answer: unknown): string | null {
  const path = field(answer, 'path');
  return typeof path === 'string' && path !== '' ? path : null;
}

function isStarter(value: unknown): value is IStarter {
  return ['name', 'title', 'description'].every(name => typeof field(value, name) === 'string');
}

function field(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null
    ? (value as Record<string, unknown>)[name]
    : undefined;
}
