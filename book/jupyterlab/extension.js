// What a reader of the book's notebooks sees in JupyterLab beyond what jupyterlab-myst renders: citations by name and year, words
// that cells compute ({glue:text}), solutions that lie in files of their own, and no slides between the paragraphs.
//
// JupyterLab loads this file as it is; nothing is compiled. jupyterlab-myst parses each Markdown cell into a tree
// (https://mystmd.org/spec), in `updateFragmentMDAST`, and renders the trees of all cells together. Here the tree is changed in between.
// `package.json` names the file; `install.py` copies both into the environment, with `references.bib` beside this file.
{
  const HERE = new URL(".", document.currentScript.src);
  const NAME = "catome-book";
  const text = (value) => ({ type: "text", value });

  // citations

  const MARKS = { '"': "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", v: "\u030c", c: "\u0327" };
  const plain = (tex) =>
    tex
      .replace(/\\(["'`^~]|[vc]\b) ?\{?(\w)\}?/g, (_, mark, letter) => (letter + MARKS[mark]).normalize("NFC"))
      .replace(/\\l\b/g, "ł")
      .replace(/[{}]/g, "");

  /** The entries of BibTeX by key: names as the book cites them, year, title, url. */
  function entries(bibliography) {
    const found = new Map();
    for (const [, key, body] of bibliography.matchAll(/^@\w+\{([^,\s]+),\n([\s\S]*?)^\}/gm)) {
      const fields = Object.fromEntries(Array.from(body.matchAll(/^ *(\w+) *= \{(.*)\},?$/gm), ([, name, value]) => [name, value]));
      const names = fields.author.split(" and ").map((author) => plain(author.split(",")[0]));
      const who = names.length > 2 ? `${names[0]} et al.` : names.join(" and ");
      found.set(key, { who, year: fields.year, title: plain(fields.title), url: fields.url });
    }
    return found;
  }
  const bibliography = fetch(new URL("references.bib", HERE)).then(async (found) => entries(found.ok ? await found.text() : ""));

  /** `[Bolya and Hoffman, 2023]`, or `Bolya and Hoffman [2023]` where the names belong to the sentence. */
  function citation(nodes, narrative, known) {
    const parts = [];
    for (const { label } of nodes) {
      const entry = known.get(label);
      const said = entry ? { type: "abbreviation", title: entry.title, children: [text(narrative ? entry.year : `${entry.who}, ${entry.year}`)] } : text(label);
      const linked = entry?.url ? { type: "link", url: entry.url, children: [said] } : said;
      if (narrative) parts.push(text(`${parts.length ? "; " : ""}${entry?.who ?? ""} [`), linked, text("]"));
      else parts.push(text(parts.length ? "; " : "["), linked);
    }
    return narrative ? parts : [...parts, text("]")];
  }

  // what cells of the notebook compute and define

  /** The text that a code cell has given under a name, or an ellipsis while none has run. */
  function glued(notebook, name) {
    for (const cell of notebook?.cells ?? []) {
      for (const output of cell.cell_type === "code" ? cell.getOutputs() : []) {
        const data = output.metadata?.scrapbook?.name === name && output.data?.["application/papermill.record/text/plain"];
        if (data) return [data].flat().join("");
      }
    }
    return "…";
  }

  /** Whether a Markdown cell has a target, an equation or a directive of this label. */
  function defines(notebook, label) {
    const target = new RegExp(`^\\(${label}\\)=|\\$\\$ *\\(${label}\\)|^:label: *${label} *$`, "m");
    return (notebook?.cells ?? []).some((cell) => cell.cell_type === "markdown" && target.test(cell.getSource()));
  }

  /** The lines of one function or class of a Python file. */
  function excerpt(source, name) {
    const lines = source.split("\n");
    const first = lines.findIndex((line) => line.match(/^(?:def|class) (\w+)/)?.[1] === name);
    if (!name || first < 0) return source;
    const more = lines.slice(first + 1).findIndex((line) => /^[^\s)]/.test(line));
    return lines.slice(first, more < 0 ? undefined : first + 1 + more).join("\n").trimEnd();
  }

  // the tree of a cell

  /** Put what `change` makes of a node in its place: a list of nodes, or null to look inside it. */
  async function replace(node, change) {
    const children = [];
    for (const child of node.children ?? []) {
      const changed = await change(child);
      if (!changed) await replace(child, change);
      children.push(...(changed ?? [child]));
    }
    if (node.children) node.children = children;
  }

  async function resolve(tree, cell, files) {
    const source = cell.model.sharedModel.getSource();
    const notebook = cell.model.sharedModel.notebook;
    const known = await bibliography;
    const included = Array.from(source.matchAll(/^`{3,}\{literalinclude\} .*\n(?::(?!pyobject).*\n)*(?::pyobject: *(\w+))?/gm), ([, name]) => name);
    await replace(tree, async (node) => {
      if (node.type === "citeGroup") return citation(node.children, node.kind === "narrative", known);
      if (node.type === "cite") return citation([node], node.kind === "narrative", known);
      if (node.type === "mystRole" && node.name === "glue:text") return [text(glued(notebook, node.value))];
      if (node.type === "mystRole" && node.name === "func") return [{ type: "inlineCode", value: node.value }];
      if (node.type === "math" && !node.label) node.enumerated = false; // as in the book, only what is referred to has a number
      if (node.type === "crossReference" && !defines(notebook, node.label)) {
        return node.children ?? [text(node.kind === "numref" ? "the figure" : node.label)];
      }
      if (node.type === "link" && /^[\w-]+$/.test(node.url)) {
        if (!defines(notebook, node.url)) return node.children;
        node.url = `#${node.url}`;
      }
      if (node.type === "include") {
        const value = node.literal ? excerpt(await files(node.file).catch(() => `(see ${node.file})`), included.shift()) : "";
        const elsewhere = [text("The book shows "), { type: "inlineCode", value: node.file }, text(" here.")];
        return [node.literal ? { type: "code", lang: node.lang, value } : { type: "paragraph", children: elsewhere }];
      }
      return null;
    });
  }

  // the plugin

  function activate({ NotebookActions }, app, factory, palette) {
    const make = factory.createMarkdownCell;
    factory.createMarkdownCell = function (options) {
      const cell = make.call(this, options);
      if (options.model.getMetadata("tags")?.includes("slide")) cell.addClass(`${NAME}-slide`);
      const update = cell.updateFragmentMDAST;
      if (!update) return cell; // not one of jupyterlab-myst
      const files = async (name) => {
        const path = await options.rendermime.resolver.resolveUrl(name);
        return (await app.serviceManager.contents.get(decodeURIComponent(path), { type: "file", format: "text", content: true })).content;
      };
      let turn = Promise.resolve();
      const inTurn = async () => {
        const before = cell._fragmentMDAST;
        await update.call(cell);
        const tree = cell._fragmentMDAST;
        cell._fragmentMDAST = before; // until all is in its place: other cells may be rendered meanwhile
        await resolve(tree, cell, files).catch((error) => console.error(NAME, error));
        cell._fragmentMDAST = tree;
      };
      cell.updateFragmentMDAST = () => (turn = turn.catch(() => {}).then(inTurn));
      return cell;
    };

    NotebookActions.executed.connect(async (_, { notebook, cell }) => {
      if (!cell.model.sharedModel.getOutputs?.().some((output) => output.metadata?.scrapbook)) return;
      const waiting = notebook.widgets.filter((one) => one.updateFragmentMDAST && one.model.sharedModel.getSource().includes("{glue:text}"));
      for (const one of waiting) await one.updateFragmentMDAST();
      await waiting.find((one) => one.isAttached && one.rendered)?.render(); // which renders those of all cells
    });

    const style = document.head.appendChild(document.createElement("style"));
    style.textContent = `body:not(.${NAME}-slides) .${NAME}-slide { display: none !important; }`;
    const command = `${NAME}:slides`;
    app.commands.addCommand(command, {
      label: "Show the Slides of a Lecture",
      isToggled: () => document.body.classList.contains(`${NAME}-slides`),
      execute: () => document.body.classList.toggle(`${NAME}-slides`),
    });
    palette?.addItem({ command, category: "Notebook Operations" });
  }

  // what JupyterLab calls: https://jupyterlab.readthedocs.io/en/stable/extension/extension_dev.html#deployment

  let shared;
  const lab = async (name) => (await Object.values(shared[name])[0].get())();
  (window._JUPYTERLAB ??= {})[NAME] = {
    init: (scope) => {
      shared = scope;
    },
    get: async () => {
      const [notebook, { ICommandPalette }] = await Promise.all([lab("@jupyterlab/notebook"), lab("@jupyterlab/apputils")]);
      const plugin = {
        id: `${NAME}:plugin`,
        autoStart: true,
        requires: [notebook.NotebookPanel.IContentFactory],
        optional: [ICommandPalette],
        activate: (...given) => activate(notebook, ...given),
      };
      return () => ({ __esModule: true, default: [plugin] });
    },
  };
}
