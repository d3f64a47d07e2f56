"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const FIRST = 24;
  const list = at("card-list"), cards = [...list.children];
  let all = false;
  const texts = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const filter = () => {
    const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const side = at("side").value, view = at("view").value;
    let shown = 0;
    for (const card of list.children) {
      const fits = (!side || card.dataset.side === side) && (!view || card.dataset.view === view)
        && words.every((word) => texts.get(card).includes(word));
      shown += fits;
      card.hidden = !fits || (!all && shown > FIRST);
    }
    at("more").hidden = all || shown <= FIRST;
    at("more").textContent = `Show all ${shown} clusters`;
    at("shown").textContent = shown === 1 ? "1 cluster" : `${shown} clusters`;
    at("none").hidden = shown > 0;
  };
  const order = () => {
    const key = at("order").value;
    const sorted = [...cards].sort((a, b) => (key ? b.dataset[key] - a.dataset[key] : 0) || a.dataset.at - b.dataset.at);
    list.append(...sorted);
    filter();
  };
  for (const id of ["search", "side", "view"]) at(id).addEventListener("input", filter);
  at("order").addEventListener("input", order);
  at("more").addEventListener("click", () => {
    const next = [...list.children].filter((card) => !card.hidden).at(-1);
    all = true;
    filter();
    if (next) next.querySelector("summary").focus();
  });
  filter();

  const maps = JSON.parse(at("map-data").textContent);
  const svg = at("map-svg"), tip = at("map-tip");
  const make = (name, values, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(values)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const draw = () => {
    const side = at("map-side").value, view = maps[side].views[at("map-view").value], titles = maps[side].titles;
    const drawn = [];
    view.of.forEach((cluster, k) => {
      const dot = make("circle", {cx: view.xy[2 * k], cy: 1000 - view.xy[2 * k + 1], r: 7, class: `c${cluster % 10}`});
      dot.dataset.name = `${titles[k]} (largest weight: ${view.centers[cluster].name})`;
      drawn.push(dot);
    });
    view.centers.forEach((center, k) => {
      const x = center.xy[0], y = 1000 - center.xy[1];
      const name = `cluster ${center.cluster}: ${center.name}`;
      const square = make("rect", {x: x - 20, y: y - 20, width: 40, height: 40, rx: 8, class: `c${k % 10}`});
      const number = make("text", {x, y: y + 9}, center.cluster);
      square.dataset.name = number.dataset.name = name;
      drawn.push(square, number);
    });
    svg.replaceChildren(...drawn);
    svg.setAttribute("aria-label", `Map of ${titles.length} ${side}s and ${view.centers.length} cluster centers, view `
      + `${at("map-view").value}. The clusters are listed beside it.`);
    at("map-share").textContent = `shows ${Math.round(100 * view.share)} % of the variance`;
    at("map-legend").replaceChildren(...view.centers.map((center, k) => {
      const item = document.createElement("li"), number = document.createElement("b");
      number.className = `c${k % 10}`;
      number.textContent = center.cluster;
      item.append(number, center.name);
      return item;
    }));
    tip.textContent = "\u00a0";
  };
  let lit = null;
  svg.addEventListener("pointerover", (event) => {
    if (lit) lit.classList.remove("on");
    lit = event.target.dataset.name ? event.target : null;
    if (lit) lit.classList.add("on");
    tip.textContent = lit ? lit.dataset.name : "\u00a0";
  });
  for (const id of ["map-side", "map-view"]) at(id).addEventListener("input", draw);
  draw();

  // tables that are closed would be missing on paper; of cards only what the reader opened is printed in full
  addEventListener("beforeprint", () => {
    all = true;
    filter();
    for (const closed of document.querySelectorAll("details:not(.card):not([open])")) {
      closed.open = true;
      closed.dataset.printed = "1";
    }
  });
  addEventListener("afterprint", () => {
    for (const opened of document.querySelectorAll("details[data-printed]")) {
      opened.open = false;
      delete opened.dataset.printed;
    }
  });
})();
