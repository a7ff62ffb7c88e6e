"use strict";
(() => {
  const part = (id) => document.getElementById(id);
  const MINE = "";
  let photograph = null, job = null, source = null, plan = [], number = 0;

  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const say = (text) => { part("said").textContent = text; };
  const complain = (text) => { part("wrong").textContent = text; part("wrong").hidden = !text; };
  const asked = async (address, options) => {
    const answer = await fetch(address, options).catch(() => null);
    if (!answer) throw new Error("The service does not answer. Does it run?");
    const told = answer.status === 204 ? null : await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(told.error || `The service answers ${answer.status}.`);
    return told;
  };

  // -- what is asked for
  const choose = (file) => {
    if (!file) return;
    photograph = file;
    part("chosen").textContent = `${file.name || "pasted"}, ${(file.size / 2 ** 20).toFixed(1)} MB`;
    part("go").disabled = false;
    restore();
  };
  const decider = () => { part("mine").hidden = part("policy").value !== MINE; part("effort").disabled = part("policy").value === MINE; };
  const showPlan = () => {
    part("plan").replaceChildren(...plan.map((tool, at) => {
      const row = make("li"), move = (to, focus) => { plan.splice(to, 0, ...plan.splice(at, 1)); showPlan(); part("plan").children[to].querySelector(focus).focus(); };
      const up = make("button", "↑", { type: "button", class: "up", "aria-label": `${tool}: earlier` });
      const down = make("button", "↓", { type: "button", class: "down", "aria-label": `${tool}: later` });
      const away = make("button", "✕", { type: "button", class: "away", "aria-label": `take ${tool} out` });
      up.disabled = at === 0;
      down.disabled = at === plan.length - 1;
      up.addEventListener("click", () => move(at - 1, at - 1 ? ".up" : ".away"));
      down.addEventListener("click", () => move(at + 1, at + 2 < plan.length ? ".down" : ".away"));
      away.addEventListener("click", () => { plan.splice(at, 1); showPlan(); (part("plan").children[Math.min(at, plan.length - 1)]?.querySelector(".away") ?? part("tool")).focus(); });
      row.append(make("span", `${at + 1}. ${tool}`), up, down, away);
      return row;
    }));
    part("empty").hidden = plan.length > 0;
  };
  const query = () => {
    const chosen = new URLSearchParams({ previews: "true" });
    if (part("policy").value === MINE) chosen.set("plan", plan.join(" "));
    else chosen.set("policy", part("policy").value);
    if (part("effort").value && part("policy").value !== MINE) chosen.set("effort", part("effort").value);
    for (const name of ["scale", "format"]) if (part(name).value) chosen.set(name, part(name).value);
    return chosen;
  };

  // -- restoring
  const end = () => {
    source?.close();
    source = null;
    part("stop").hidden = true;
    part("go").disabled = !photograph;
  };
  const forget = () => { if (job) fetch(`/v1/jobs/${job.id}`, { method: "DELETE" }).catch(() => {}); job = null; };
  const restore = async () => {
    const mine = ++number;
    end();
    forget();
    complain("");
    for (const id of ["save", "change", "trace"]) part(id).hidden = true;
    part("result").hidden = true;
    part("go").disabled = true;
    part("stop").hidden = false;
    say("The photograph is sent …");
    try {
      const begun = await asked(`/v1/jobs?${query()}`, { method: "POST", body: photograph, headers: { "content-type": photograph.type.startsWith("image/") ? photograph.type : "application/octet-stream" } });
      if (mine !== number) { fetch(`/v1/jobs/${begun.id}`, { method: "DELETE" }).catch(() => {}); return; }
      source = new EventSource(begun.links.events);
      source.onmessage = (event) => { if (mine === number) progress(JSON.parse(event.data)); };
      source.onerror = () => { if (mine === number && source?.readyState === EventSource.CLOSED) { end(); say(""); complain("The service has forgotten this photograph, or ended. Try again."); } };
    } catch (error) {
      if (mine !== number) return;
      end();
      say("");
      complain(error.message);
    }
  };
  const progress = (now) => {
    job = now;
    const tools = now.steps.slice(1).map((step) => step.tool);
    if (now.state === "waiting") say(now.before ? `It waits: ${now.before} before it.` : "It waits.");
    if (now.state === "running") say(tools.length ? `${tools.join(" → ")} → …` : now.steps.length ? "The first tool is chosen …" : "The photograph is read …");
    if (now.steps.length) showSteps(now.steps);
    if (!["done", "failed", "cancelled"].includes(now.state)) return;
    end();
    if (now.state !== "done") { say(""); complain(now.error || "The restoration was ended."); return; }
    const told = [tools.length ? tools.join(" → ") : "Nothing was done: the policy would not touch it"];
    told.push(`${now.trace.seconds.toFixed(1)} s`, ...now.trace.notes, ...now.trace.not_run.map((each) => `${each.tool} not run: ${each.why}`));
    say(`Done. ${told.join("; ")}.`);
    if (now.trace.error) complain(now.trace.error);
    const suffix = now.trace.restored.slice(now.trace.restored.lastIndexOf("."));
    const stem = (photograph.name || "photograph").replace(/\.[^.]*$/, "");
    Object.assign(part("save"), { href: now.links.image, download: `${stem}_restored${suffix}`, hidden: false });
    Object.assign(part("trace"), { href: `${now.links.self}/trace`, download: `${stem}_trace.json`, hidden: false });
    part("change").hidden = false;
  };
  const showSteps = (steps) => {
    const fields = part("steps"), had = fields.querySelectorAll("input").length;
    const same = !part("result").hidden && fields.dataset.job === job.id;
    const chosen = same ? Number(fields.querySelector("input:checked")?.value ?? 0) : 0;
    if (same && had === steps.length) return;
    fields.dataset.job = job.id;
    fields.replaceChildren(fields.firstElementChild, ...steps.map((step, at) => {
      const label = make("label");
      label.append(make("input", undefined, { type: "radio", name: "step", value: at }), at ? `${at} ${step.tool}` : "as it came");
      return label;
    }));
    // the newest, unless someone looks at another
    const at = same && chosen < had - 1 ? chosen : steps.length - 1;
    fields.querySelectorAll("input")[at].checked = true;
    part("before").src = steps[0].preview;
    part("before").alt = "the photograph as it came";
    part("result").hidden = false;
    showStep(at);
  };
  const showStep = (at) => {
    const step = job.steps[at];
    part("after").src = step.preview;
    part("after").alt = at ? `after ${step.tool}` : "the photograph as it came";
    part("name").textContent = at ? step.tool : "as it came";
    const thought = Object.entries(step.thought || {}).map(([tool, share]) => `${tool} ${Math.round(share * 100)} %`).join(", ");
    part("thought").textContent = at ? `${step.tool}: ${step.seconds.toFixed(2)} s of work.${thought ? ` What the policy thought of: ${thought}.` : ""}` : "";
  };
  part("after").addEventListener("load", () => {
    const { naturalWidth: width, naturalHeight: height } = part("after");
    part("compare").style.aspectRatio = `${width} / ${height}`;
    part("view").style.width = `clamp(min(100%, 18rem), min(${width}px, ${(75 * width) / height}vh), 100%)`;
  });

  part("file").addEventListener("change", () => choose(part("file").files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => {
    event.preventDefault();
    part("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => choose([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
  part("policy").addEventListener("change", decider);
  part("add").addEventListener("click", () => { plan.push(part("tool").value); showPlan(); });
  part("ask").addEventListener("submit", (event) => { event.preventDefault(); if (photograph) restore(); });
  part("stop").addEventListener("click", () => { number++; end(); forget(); say("Stopped."); });
  part("steps").addEventListener("change", (event) => showStep(Number(event.target.value)));
  part("change").addEventListener("click", () => {
    plan = job.steps.slice(1).map((step) => step.tool);
    part("policy").value = MINE;
    decider();
    showPlan();
    part("mine").scrollIntoView({ block: "center" });
    (part("plan").querySelector(".away") ?? part("tool")).focus({ preventScroll: true });
  });
  comparison(part("compare"), part("slider"));
  showPlan();

  (async () => {
    try {
      const [tools, policies, limits] = await Promise.all(["tools", "policies", "limits"].map((name) => asked(`/v1/${name}`)));
      part("policy").replaceChildren(...policies.map((name) => make("option", `policy ${name}`, { value: name })), make("option", "a plan of mine", { value: MINE }));
      const groups = new Map();
      for (const tool of tools) {
        if (!groups.has(tool.task)) groups.set(tool.task, make("optgroup", undefined, { label: tool.task.replaceAll("_", " ") }));
        groups.get(tool.task).append(make("option", tool.name, { value: tool.name, title: tool.summary }));
      }
      part("tool").replaceChildren(...groups.values());
      part("keep").textContent = limits.keep_s >= 120 ? `${Math.round(limits.keep_s / 60)} minutes` : `${limits.keep_s} seconds`;
      decider();
    } catch (error) {
      complain(error.message);
    }
  })();
})();
