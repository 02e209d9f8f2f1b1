// Says of each statement whether CockroachDB's grammar accepts it.
//
// Reads one JSON object per line, {"statement": "..."}, and answers each with one line: {"statements": 1, "error": ""}.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cockroachdb/cockroachdb-parser/pkg/sql/parser"
)

type question struct {
	Statement string `json:"statement"`
}

type answer struct {
	Statements int    `json:"statements"`
	Error      string `json:"error"`
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	questions, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var asked question
		if err := questions.Decode(&asked); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := answers.Encode(parse(asked.Statement)); err != nil {
			return err
		}
	}
}

func parse(statement string) answer {
	parsed, err := parser.Parse(statement)
	if err != nil {
		return answer{Error: err.Error()}
	}
	return answer{Statements: len(parsed)}
}
