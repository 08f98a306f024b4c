/** The panel at the right: the slice now, and its last quarter of an hour as curves. */
import { ReactWidget } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { Message } from '@lumino/messaging';
import * as React from 'react';

import { curve, type IPoint, summary, windowUs } from './curve';
import * as format from './format';
import { advice, fullness, type IHome, share, warning } from './home';
import type { IHomeModel } from './homeModel';
import { gpuIcon } from './icon';
import type { IGpuModel } from './model';
import { FAST_MS } from './poll';
import type { IRow, IState } from './state';
import { Bar, Simulated, useNow } from './views';
import { type IReading, locale, reading } from './words';

const BOX = { width: 240, height: 56 };

export class GpuPanel extends ReactWidget {
  constructor(
    private readonly _model: IGpuModel,
    private readonly _home: IHomeModel | null,
    private readonly _trans: TranslationBundle
  ) {
    super();
    this.id = 'jp-gpuslice-panel';
    this.addClass('jp-GpuSlicePanel');
    this.title.icon = gpuIcon;
    this.title.caption = _trans.__('GPU slice');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', _trans.__('GPU slice'));
  }

  protected override onAfterShow(): void {
    this._model.want('panel', FAST_MS);
    this.update();
  }

  protected override onAfterHide(): void {
    this._model.want('panel', null);
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    if (this.isVisible) {
      this._model.want('panel', FAST_MS);
    }
  }

  protected override onBeforeDetach(message: Message): void {
    this._model.want('panel', null);
    super.onBeforeDetach(message);
  }

  protected override render(): React.JSX.Element {
    return <Panel model={this._model} home={this._home} trans={this._trans} seen={this._seen} />;
  }

  private readonly _seen = () => this.isVisible;
}

function Panel(props: {
  model: IGpuModel;
  home: IHomeModel | null;
  trans: TranslationBundle;
  seen: () => boolean;
}): React.JSX.Element {
  const { model, seen, trans } = props;
  const home = props.home?.home ?? null;
  const now = useNow(model, seen);
  const { state } = model;
  const shown = reading(state, now, trans);
  if (!state.heard && state.problem === null) {
    return <p className="jp-GpuSlicePanel-note">{trans.__('Asking …')}</p>;
  }
  return (
    <>
      <header className="jp-GpuSlicePanel-head">
        <h2>{shown.title}</h2>
        {state.device?.model && <p>{state.device.model}</p>}
        {shown.simulated && <SimulatedNote state={state} trans={trans} />}
      </header>
      <div role="status" className="jp-GpuSlicePanel-remarks">
        {shown.remarks.map(remark => (
          <p key={remark}>{remark}</p>
        ))}
      </div>
      {shown.ends !== null && (
        <Section title={trans.__('Time left')} value={shown.left}>
          <p className="jp-GpuSlicePanel-note">{shown.ends}</p>
        </Section>
      )}
      {state.device?.kind !== 'none' && (
        <>
          <Memory state={state} shown={shown} now={now} trans={trans} />
          <Utilisation state={state} shown={shown} now={now} trans={trans} />
        </>
      )}
      {state.bill !== null && <Cost state={state} shown={shown} now={now} trans={trans} />}
      {home !== null && <Home home={home} offsetUs={state.offsetUs} trans={trans} />}
    </>
  );
}

interface ISectionProps {
  state: IState;
  shown: IReading;
  now: number;
  trans: TranslationBundle;
}

function SimulatedNote(props: { state: IState; trans: TranslationBundle }): React.JSX.Element {
  const { state, trans } = props;
  const sentences = [
    ...(state.device?.kind === 'none' ? [] : [trans.__('There is no such GPU.')]),
    ...(state.bill ? [trans.__('No real money is meant.')] : [])
  ];
  return (
    <p className="jp-GpuSlicePanel-simulated">
      <Simulated trans={trans} /> {sentences.join(' ')}
    </p>
  );
}

function Memory({ now, shown, state, trans }: ISectionProps) {
  const points = state.rows.map(row => point(row, row.memory));
  const text = (bytes: number) => format.memory(bytes, locale());
  const top = state.device?.memory_total ?? (summary(points)?.most ?? 1) * 1.2;
  return (
    <Section title={trans.__('Memory')} value={shown.memory}>
      <Missing reason={shown.memory === null ? shown.memoryReason : null} />
      {shown.memoryShare !== null && (
        <Bar share={shown.memoryShare} label={trans.__('GPU memory')} text={shown.memory ?? ''} />
      )}
      <Chart {...{ name: trans.__('Memory'), points, top, text, state, now, trans }} />
    </Section>
  );
}

function Utilisation({ now, shown, state, trans }: ISectionProps) {
  const points = state.rows.map(row => point(row, row.utilisation));
  const text = (value: number) => format.percent(value, locale());
  const missing = shown.utilisation === null;
  return (
    <Section title={trans.__('Utilisation')} value={shown.utilisation}>
      <Missing reason={missing ? shown.utilisationReason : null} />
      <Chart name={trans.__('Utilisation')} top={100} {...{ points, text, state, now, trans }} />
    </Section>
  );
}

function Cost({ now, shown, state, trans }: ISectionProps) {
  const currency = state.bill?.currency ?? '';
  const points = state.rows.map(row => point(row, row.costU));
  const text = (micro: number) => format.money(micro, currency, locale());
  return (
    <Section title={trans.__('Cost so far')} value={shown.cost}>
      <p className="jp-GpuSlicePanel-note">{shown.rate}</p>
      <Chart
        name={trans.__('Cost')}
        top={(summary(points)?.most ?? 1) * 1.1}
        {...{ points, text, state, now, trans }}
      />
    </Section>
  );
}

function Home(props: { home: IHome; offsetUs: number; trans: TranslationBundle }) {
  const { home, offsetUs, trans } = props;
  const text = fullness(home, locale(), trans);
  const words = warning(home, locale(), trans);
  const reason =
    home.source === 'counting'
      ? trans.__('being counted')
      : trans.__('How full it is cannot be told.');
  const counted =
    home.source === 'counted' && home.taken_us !== null
      ? trans.__('Counted at %1.', format.clock(home.taken_us - offsetUs, locale()))
      : null;
  return (
    <Section title={trans.__('Home')} value={text}>
      {text !== null && <Bar share={share(home)} label={trans.__('Home')} text={text} />}
      <Missing reason={text === null ? reason : counted} />
      <div role="status" className="jp-GpuSlicePanel-remarks">
        {words !== null && (
          <p>
            {words} {advice(home, trans)}
          </p>
        )}
      </div>
    </Section>
  );
}

function point(row: IRow, value: number | null): IPoint {
  return { us: row.takenUs, value };
}

function Section(props: {
  title: string;
  value: string | null;
  children: React.ReactNode;
}): React.JSX.Element {
  return (
    <section className="jp-GpuSlicePanel-section">
      <h3>{props.title}</h3>
      {props.value !== null && <p className="jp-GpuSlicePanel-value">{props.value}</p>}
      {props.children}
    </section>
  );
}

function Missing(props: { reason: string | null }): React.JSX.Element | null {
  return props.reason === null ? null : <p className="jp-GpuSlicePanel-note">{props.reason}</p>;
}

/** A curve, with a sentence in the place of the picture for who does not see it. */
function Chart(props: {
  name: string;
  points: readonly IPoint[];
  top: number;
  text: (value: number) => string;
  state: IState;
  now: number;
  trans: TranslationBundle;
}): React.JSX.Element | null {
  const { name, now, points, state, text, top, trans } = props;
  const found = summary(points);
  if (found === null) {
    return null;
  }
  const nowUs = now + state.offsetUs;
  const window = windowUs(points, nowUs);
  const minutes = Math.round(window / 60e6);
  const drawn = curve(points, BOX, { nowUs, windowUs: window }, top);
  const words = trans.__(
    '%1 in the last %2 minutes: between %3 and %4, last %5',
    name,
    minutes,
    text(found.least),
    text(found.most),
    text(found.last)
  );
  return (
    <figure className="jp-GpuSlicePanel-chart">
      <svg
        role="img"
        aria-label={words}
        viewBox={`0 0 ${BOX.width} ${BOX.height}`}
        preserveAspectRatio="none"
      >
        <title>{words}</title>
        <path className="jp-GpuSlicePanel-area" d={drawn.area} />
        <path className="jp-GpuSlicePanel-line" d={drawn.line} />
      </svg>
      <figcaption aria-hidden="true">
        <span>{trans._n('%1 minute ago', '%1 minutes ago', minutes)}</span>
        <span>{trans.__('now')}</span>
      </figcaption>
    </figure>
  );
}
