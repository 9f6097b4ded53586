// Tells the page which picture of a gallery was clicked, or chosen by Enter.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-index]");
  if (!button) return;
  for (const other of element.querySelectorAll("button[data-index]"))
    other.setAttribute("aria-pressed", String(other === button));
  trigger("select", { png: button.querySelector("img").src });
});
