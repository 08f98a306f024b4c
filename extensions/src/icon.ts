/** A chip, as the panel's icon; with a sign to start, as the starters'. */
import { LabIcon } from '@jupyterlab/ui-components';

const CHIP = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
<path class="jp-icon3 jp-icon-selectable" fill="#616161" d="M7 2h2v3h2V2h2v3h2V2h2v3h2v2h3v2h-3v2h3v2h-3v2h3v2h-3v2h-2v3h-2v-3h-2v3h-2v-3H9v3H7v-3H5v-2H2v-2h3v-2H2v-2h3V9H2V7h3V5h2zm0 5v10h10V7zm2 2h6v6H9z"/>
</svg>`;

// The same chip around a triangle. The accent's colour is the theme's.
const START = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
<path class="jp-icon3 jp-icon-selectable" fill="#616161" d="M7 2h2v3h2V2h2v3h2V2h2v3h2v2h3v2h-3v2h3v2h-3v2h3v2h-3v2h-2v3h-2v-3h-2v3h-2v-3H9v3H7v-3H5v-2H2v-2h3v-2H2v-2h3V9H2V7h3V5h2zm0 5v10h10V7z"/>
<path class="jp-icon-brand0 jp-icon-selectable" fill="#1976d2" d="M9.5 8.5v7l6-3.5z"/>
</svg>`;

export const gpuIcon = new LabIcon({
  name: 'jupyterlab-gpuslice:chip',
  svgstr: CHIP
});

export const starterIcon = new LabIcon({
  name: 'jupyterlab-gpuslice:starter',
  svgstr: START
});
