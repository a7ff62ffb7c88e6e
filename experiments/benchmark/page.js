"use strict";
(() => {
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const root = document.getElementById("gallery-view");
  if (!root || !data.images.length) return;
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const [image, policy, against, steps, compare, before, after, slider, scores, said] =
    ["image", "policy", "against", "steps", "compare", "before", "after", "slider", "scores", "said"].map(part);
  const state = { image: 0, policy: 0, step: 0 };

  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const fill = (select, names) => select.replaceChildren(...names.map((name, index) => make("option", name, { value: index })));
  const shown = () => data.images[state.image];
  const trajectory = () => shown().trajectories[state.policy];

  const chooseImage = (index) => {
    const name = trajectory()?.policy;
    state.image = index;
    fill(policy, shown().trajectories.map((each) => each.policy));
    const same = shown().trajectories.findIndex((each) => each.policy === name);
    [...against.options].find((each) => each.value === "clean").disabled = shown().clean === null;
    if (against.value === "clean" && shown().clean === null) against.value = "degraded";
    choosePolicy(Math.max(0, same));
  };
  const choosePolicy = (index) => {
    state.policy = index;
    image.value = state.image;
    policy.value = index;
    const labels = trajectory().steps.map((step, number) => {
      const label = make("label");
      label.append(make("input", undefined, { type: "radio", name: "step", value: number }), number ? `${number} ${step.tool}` : "degraded");
      return label;
    });
    steps.replaceChildren(steps.firstElementChild, ...labels);
    chooseStep(trajectory().steps.length - 1);
  };
  const chooseStep = (number) => {
    state.step = number;
    steps.querySelectorAll("input")[number].checked = true;
    show();
  };
  const show = () => {
    const all = trajectory().steps, now = all[state.step];
    const first = { previous: all[Math.max(0, state.step - 1)], degraded: all[0] }[against.value];
    before.src = data.pictures[first ? first.picture : shown().clean];
    after.src = data.pictures[now.picture];
    const title = now.tool || "degraded", other = first ? first.tool || "degraded" : "clean";
    before.alt = `before: ${other}`;
    after.alt = `after: ${title}`;
    part("name-before").textContent = other;
    part("name-after").textContent = title;
    scores.replaceChildren(
      ...Object.entries(now.metrics).map(([name, value]) => {
        const row = make("tr"), had = first?.metrics[name];
        row.append(make("th", name, { scope: "row" }), make("td", had === undefined ? "" : had), make("td", value));
        return row;
      }),
    );
    said.textContent = `${trajectory().policy}, step ${state.step} of ${all.length - 1}: ${title}${trajectory().error ? `. Then a tool failed: ${trajectory().error}` : ""}`;
  };
  const wrap = (value, length) => (value + length) % length;

  image.addEventListener("change", () => chooseImage(Number(image.value)));
  policy.addEventListener("change", () => choosePolicy(Number(policy.value)));
  against.addEventListener("change", show);
  steps.addEventListener("change", (event) => chooseStep(Number(event.target.value)));
  // controls that use the arrows themselves keep them
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, summary, .scroll")) return;
    const inView = root.getBoundingClientRect().top < innerHeight && root.getBoundingClientRect().bottom > 0;
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move || !inView || (move[1] && !root.contains(event.target))) return;
    event.preventDefault();
    if (move[0]) chooseStep(wrap(state.step + move[0], trajectory().steps.length));
    else choosePolicy(wrap(state.policy + move[1], shown().trajectories.length));
  });

  // the box has the proportions of the picture, whatever the size of a step
  after.addEventListener("load", () => { compare.style.aspectRatio = `${after.naturalWidth} / ${after.naturalHeight}`; });
  fill(image, data.images.map((each) => each.name));
  comparison(compare, slider);
  chooseImage(0);
  // the best policy, or else the first that did something
  const named = shown().trajectories.findIndex((each) => each.policy === data.policy && each.steps.length > 1);
  choosePolicy(named < 0 ? Math.max(0, shown().trajectories.findIndex((each) => each.steps.length > 1)) : named);
})();
