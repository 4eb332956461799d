package consul

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/parser"
	"github.com/hashicorp/hcl/hcl/scanner"
	"github.com/hashicorp/hcl/hcl/token"
)

// toJSON makes JSON of HCL 1 as Consul reads it. Every key stands in the line that it has in the HCL, as far as the order of
// JSON allows. Blocks of the same name are a list; any other key that is there twice is an error, although HCL would take
// the last. Errors begin with the line.
func toJSON(data []byte) (out []byte, err error) {
	if rest := bytes.TrimLeft(data, " \t\r\n"); len(rest) > 0 && rest[0] == '{' {
		return data, nil // it is JSON
	}
	if line := tooDeep(data); line > 0 {
		return nil, fmt.Errorf("%d: nested more than %d levels deep", line, maxDepth)
	}
	// The parser leaves out what a file ends in the middle of.
	last := bytes.Count(bytes.TrimRight(data, "\n"), []byte("\n")) + 1
	file, err := parser.Parse(append(bytes.Clone(data), "\n"+end+" = 1\n"...))
	if err != nil {
		line := 1
		if at, ok := errors.AsType[*parser.PosError](err); ok {
			line, err = min(at.Pos.Line, last), at.Err
		}
		return nil, fmt.Errorf("%d: not valid HCL: %w; config entries are in HCL 1, as consul config write takes it: keep other files elsewhere", line, err)
	}
	list, ok := file.Node.(*ast.ObjectList)
	if !ok || len(list.Items) == 0 || !isEnd(list.Items[len(list.Items)-1]) {
		return nil, fmt.Errorf("%d: not valid HCL: it ends too early", last)
	}
	if list.Items = list.Items[:len(list.Items)-1]; len(list.Items) == 0 {
		return nil, nil
	}
	w := writer{line: 1}
	if err := w.object(list, list.Items[0].Pos().Line); err != nil {
		return nil, err
	}
	return w.out.Bytes(), nil
}

// maxDepth bounds objects and lists in one another, as that of JSON is bounded: the parser calls itself for each.
const maxDepth = 64

// tooDeep returns the line in which there are too many objects and lists in one another, 0 if there is none. It reads what the parser
// reads, for which a brace in a text or in a comment is none.
func tooDeep(data []byte) int {
	s := scanner.New(bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")))
	s.Error = func(token.Pos, string) {} // which is for the parser to find
	for depth := 0; ; {
		switch t := s.Scan(); t.Type {
		case token.LBRACE, token.LBRACK:
			if depth++; depth > maxDepth {
				return t.Pos.Line
			}
		case token.RBRACE, token.RBRACK:
			depth = max(0, depth-1)
		case token.EOF:
			return 0
		}
	}
}

// end is a key that is added to a file to see that it has been read to its end.
const end = "end-of-the-file"

func isEnd(item *ast.ObjectItem) bool { return len(item.Keys) == 1 && item.Keys[0].Token.Text == end }

// writer writes JSON.
type writer struct {
	out  bytes.Buffer
	line int
}

// to goes on to a line, if it is not there yet.
func (w *writer) to(line int) {
	for ; w.line < line; w.line++ {
		w.out.WriteByte('\n')
	}
}

// members are the items of an object that have the same key.
type members struct {
	key   string
	items []*ast.ObjectItem
}

func (w *writer) object(list *ast.ObjectList, line int) error {
	var all []*members
	byKey := make(map[string]*members)
	for _, item := range list.Items {
		if len(item.Keys) == 0 {
			return fmt.Errorf("%d: a value without a key", item.Pos().Line)
		}
		key, err := text(item.Keys[0].Token)
		if err != nil {
			return err
		}
		m := byKey[key]
		if m == nil {
			m = &members{key: key}
			byKey[key] = m
			all = append(all, m)
		}
		m.items = append(m.items, item)
	}
	w.to(line)
	w.out.WriteByte('{')
	for i, m := range all {
		if i > 0 {
			w.out.WriteByte(',')
		}
		if err := w.member(m); err != nil {
			return err
		}
	}
	w.out.WriteByte('}')
	return nil
}

func (w *writer) member(m *members) error {
	first := m.items[0]
	w.to(first.Keys[0].Pos().Line)
	if err := w.value(m.key); err != nil {
		return err
	}
	w.out.WriteByte(':')
	if len(m.items) == 1 {
		return w.item(first)
	}
	w.out.WriteByte('[')
	for i, item := range m.items {
		if i > 0 && (item.Assign.IsValid() || first.Assign.IsValid()) {
			return fmt.Errorf("%d: %s is set twice, first in line %d: remove one; a file has one entry, and what is there several times are blocks, without =",
				item.Pos().Line, m.key, first.Pos().Line)
		}
		if i > 0 {
			w.out.WriteByte(',')
		}
		w.to(item.Pos().Line)
		if err := w.item(item); err != nil {
			return err
		}
	}
	w.out.WriteByte(']')
	return nil
}

// item writes the value of an item. The labels of a block are keys of objects around it.
func (w *writer) item(item *ast.ObjectItem) error {
	for _, label := range item.Keys[1:] {
		w.out.WriteByte('{')
		key, err := text(label.Token)
		if err != nil {
			return err
		}
		if err := w.value(key); err != nil {
			return err
		}
		w.out.WriteByte(':')
	}
	if err := w.node(item.Val); err != nil {
		return err
	}
	for range item.Keys[1:] {
		w.out.WriteByte('}')
	}
	return nil
}

func (w *writer) node(node ast.Node) error {
	switch n := node.(type) {
	case *ast.ObjectType:
		return w.object(n.List, n.Lbrace.Line)
	case *ast.ListType:
		w.to(n.Lbrack.Line)
		w.out.WriteByte('[')
		for i, element := range n.List {
			if i > 0 {
				w.out.WriteByte(',')
			}
			if err := w.node(element); err != nil {
				return err
			}
		}
		w.out.WriteByte(']')
		return nil
	case *ast.LiteralType:
		w.to(n.Pos().Line)
		v, err := literal(n.Token)
		if err != nil {
			return err
		}
		return w.value(v)
	}
	return fmt.Errorf("%d: what is this? It is neither a value, a list nor an object", node.Pos().Line)
}

func (w *writer) value(v any) error {
	text, err := json.Marshal(v)
	w.out.Write(text)
	return err
}

// text returns a key.
func text(t token.Token) (string, error) {
	v, err := literal(t)
	if err != nil {
		return "", err
	}
	key, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("%d: a key must be a word or a string", t.Pos.Line)
	}
	return key, nil
}

// literal returns a value. The library panics where it cannot be read.
func literal(t token.Token) (v any, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%d: not valid HCL: %v", t.Pos.Line, cause)
		}
	}()
	return t.Value(), nil
}
