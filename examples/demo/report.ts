// How the demo looks: one aligned line for each step, coloured on a terminal, plain when piped.

import { styleText } from 'node:util';

/** One step as it came out. */
export interface Line {
  readonly sent: string;
  /** Status and code, such as `403 invalid_token`. */
  readonly answer: string;
  /** Whether the API server was asked. */
  readonly asked: string;
  readonly why: string;
  /** What was expected and what came instead; empty where all is well. */
  readonly faults: readonly string[];
}

export interface Report {
  title(text: string): void;
  /** Label and text, such as a service and its URL. */
  fact(label: string, text: string): void;
  heading(text: string, columns?: boolean): void;
  note(text: string): void;
  /** Shows a step that is under way; on a terminal only. */
  pending(sent: string): void;
  step(line: Line): void;
  summary(isGood: boolean, text: string): void;
  /** Ends a line that is under way. */
  interrupted(text: string): void;
  plain(text: string): void;
}

const widths = { sent: 36, answer: 23, asked: 11 };

/** Reports to a stream; colours follow it, NO_COLOR and FORCE_COLOR. */
export function createReport(stream: NodeJS.WriteStream): Report {
  const style = (format: Parameters<typeof styleText>[0], text: string): string =>
    styleText(format, text, { stream, validateStream: true });
  const print = (text = ''): void => void stream.write(`${text}\n`);

  return {
    title(text) {
      print(style('bold', text));
      print();
    },
    fact: (label, text) => print(`  ${style('dim', label.padEnd(14))}${text}`),
    heading(text, columns = false) {
      print();
      // The columns are named once.
      if (columns)
        print(style('dim', `    ${'sent'.padEnd(widths.sent)}${'answer'.padEnd(widths.answer)}${'API server'.padEnd(widths.asked)}why`));
      print(style('bold', text));
    },
    note: (text) => print(`  ${style('dim', text)}`),
    pending(sent) {
      if (stream.isTTY) stream.write(`  ${style('dim', `… ${sent}`)}`);
    },
    step({ sent, answer, asked, why, faults }) {
      if (stream.isTTY) stream.write('\r\u001B[K');
      const isGood = faults.length === 0;
      const mark = isGood ? style('green', '✓') : style('red', '✗');
      const answered = style(isGood ? 'cyan' : 'red', answer.padEnd(widths.answer));
      print(`  ${mark} ${sent.padEnd(widths.sent)}${answered}${style('dim', asked.padEnd(widths.asked))}${why}`.trimEnd());
      for (const fault of faults) print(`      ${style('red', fault)}`);
    },
    summary(isGood, text) {
      print();
      print(style(isGood ? ['bold', 'green'] : ['bold', 'red'], `${isGood ? '✓' : '✗'} ${text}`));
    },
    interrupted(text) {
      if (stream.isTTY) print();
      print(style('dim', text));
    },
    plain: print,
  };
}
