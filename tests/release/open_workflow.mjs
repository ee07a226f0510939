// Open ComfyUI workflows by the editor's own graph library and say of each, as a line of JSON, what it found.
import fs from "node:fs";

// What the library asks of a browser when it is loaded; nothing is drawn.
globalThis.window = globalThis;
globalThis.document = { addEventListener() {}, createElement: () => ({ style: {}, getContext: () => ({ measureText: () => ({ width: 10 }) }) }) };
for (const name of ["HTMLElement", "HTMLCanvasElement", "HTMLImageElement", "ImageBitmap", "Path2D", "DOMMatrix", "CustomEvent"]) globalThis[name] ??= class {};

const { LGraph, LGraphNode, LiteGraph } = await import("@comfyorg/litegraph");

const joined = (graph, link) => {
  const [from, to] = [graph.getNodeById(link.origin_id), graph.getNodeById(link.target_id)];
  const [out, into] = [from?.outputs[link.origin_slot], to?.inputs[link.target_slot]];
  return Boolean(out?.links?.includes(link.id)) && into?.link === link.id && out.type === into.type;
};

for (const path of process.argv.slice(2)) {
  const workflow = JSON.parse(fs.readFileSync(path));
  for (const { type, inputs = [], outputs = [] } of workflow.nodes) {
    LiteGraph.registerNodeType(type, class extends LGraphNode {
      constructor(title) {
        super(title);
        for (const slot of inputs) this.addInput(slot.name, slot.type);
        for (const slot of outputs) this.addOutput(slot.name, slot.type);
      }
    });
  }
  const graph = new LGraph();
  const failed = Boolean(graph.configure(workflow));
  const links = [...graph.links.values()];
  console.log(JSON.stringify({
    failed,
    nodes: [graph.nodes.length, workflow.nodes.length],
    links: [links.filter((link) => joined(graph, link)).length, workflow.links.length],
    faults: graph.nodes.filter((node) => node.has_errors).length,
  }));
}
