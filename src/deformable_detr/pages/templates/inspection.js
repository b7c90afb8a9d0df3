const dialog = document.getElementById("large");
for (const button of document.querySelectorAll("figure button"))
  button.addEventListener("click", () => {
    const caption = button.parentElement.querySelector("figcaption").cloneNode(true);
    dialog.querySelector("div").replaceChildren(button.querySelector("svg").cloneNode(true), caption);
    dialog.showModal();
  });
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
