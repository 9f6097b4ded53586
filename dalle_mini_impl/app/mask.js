// Marks cells of the token grid: by dragging over them, or by arrow keys and the space bar.
let marking = null;
const cell = (target) => target && target.closest && target.closest("button[data-cell]");
const set = (button, on) => {
  const index = Number(button.dataset.cell);
  const cells = props.value.cells;
  if ((cells[index] === "#") !== on)
    props.value = { ...props.value, cells: cells.slice(0, index) + (on ? "#" : ".") + cells.slice(index + 1) };
};
const toggle = (button) => set(button, props.value.cells[Number(button.dataset.cell)] !== "#");

element.addEventListener("pointerdown", (event) => {
  const button = cell(event.target);
  if (!button) return;
  if (button.hasPointerCapture(event.pointerId)) button.releasePointerCapture(event.pointerId);
  marking = props.value.cells[Number(button.dataset.cell)] !== "#";
  set(button, marking);
});
element.addEventListener("pointermove", (event) => {
  const button = marking !== null && cell(document.elementFromPoint(event.clientX, event.clientY));
  if (button && element.contains(button)) set(button, marking);
});
for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, () => (marking = null));
element.addEventListener("click", (event) => {
  // Of a click by the keyboard; one by a pointer was handled when it began.
  if (event.detail === 0 && cell(event.target)) toggle(cell(event.target));
});
element.addEventListener("keydown", (event) => {
  const button = cell(event.target);
  const columns = props.value.columns;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (!button || !(event.key in steps)) return;
  event.preventDefault();
  const next = element.querySelector(`[data-cell="${Number(button.dataset.cell) + steps[event.key]}"]`);
  if (next) next.focus();
});
