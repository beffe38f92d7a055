package verify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
	"unicode/utf8"
)

// checkJSON refuses what encoding/json would silently mend when it unmarshals b into a value of type t: members that are
// unknown, repeated, missing or spelt in another case (case folding makes U+017F an s and U+212A a k), null, invalid
// UTF-8 and trailing data. Two parsers must never read two things from one package.
//
// t is made of structs, slices, strings, byte slices (strings in JSON) and integers, which is all that packages need.
func checkJSON(b []byte, t reflect.Type) error {
	if !utf8.Valid(b) {
		return errors.New("invalid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := checkValue(dec, t); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("data after the package")
	}
	return nil
}

func checkValue(dec *json.Decoder, t reflect.Type) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	tok, err := dec.Token()
	if err != nil {
		return fmt.Errorf("read JSON: %w", err)
	}
	switch {
	case t.Kind() == reflect.Struct && tok == json.Delim('{'):
		return checkObject(dec, t)
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8 && tok == json.Delim('['):
		return checkArray(dec, t.Elem())
	case t.Kind() == reflect.Int64 || t.Kind() == reflect.Uint64:
		return checkInteger(tok)
	case t.Kind() == reflect.String || t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		if _, ok := tok.(string); ok {
			return nil
		}
	}
	return fmt.Errorf("%v where another type of value belongs", describeToken(tok))
}

// member is what a field's tag says of it.
type member struct {
	number   int
	kind     reflect.Type
	optional bool
}

// membersOfTypes holds a map[string]member for each struct that was read.
var membersOfTypes sync.Map

func membersOf(t reflect.Type) map[string]member {
	if known, ok := membersOfTypes.Load(t); ok {
		return known.(map[string]member)
	}
	members := map[string]member{}
	for f := range t.Fields() {
		name, flags, _ := strings.Cut(f.Tag.Get("json"), ",")
		members[name] = member{number: len(members), kind: f.Type, optional: flags == "omitempty"}
	}
	membersOfTypes.Store(t, members)
	return members
}

func checkObject(dec *json.Decoder, t reflect.Type) error {
	members := membersOf(t)
	seen := make([]bool, len(members))
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return fmt.Errorf("read JSON: %w", err)
		}
		name, _ := tok.(string) // the decoder lets nothing else be a member's name
		m, known := members[name]
		if !known || seen[m.number] {
			return fmt.Errorf("unknown or repeated member %.80q", name)
		}
		seen[m.number] = true
		if err := checkValue(dec, m.kind); err != nil {
			return fmt.Errorf("member %q: %w", name, err)
		}
	}
	for name, m := range members {
		if !seen[m.number] && !m.optional {
			return fmt.Errorf("member %q is missing", name)
		}
	}
	return endOf(dec)
}

func checkArray(dec *json.Decoder, elem reflect.Type) error {
	for dec.More() {
		if err := checkValue(dec, elem); err != nil {
			return err
		}
	}
	return endOf(dec)
}

// endOf reads the closing bracket, which the decoder checks.
func endOf(dec *json.Decoder) error {
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("read JSON: %w", err)
	}
	return nil
}

// checkInteger wants 0|[1-9][0-9]*, up to 2^53−1.
func checkInteger(tok json.Token) error {
	n, ok := tok.(json.Number)
	if !ok {
		return fmt.Errorf("%v where an integer belongs", describeToken(tok))
	}
	if _, err := parseSize(n.String()); err != nil {
		return fmt.Errorf("%.80q is not an integer from 0 to 2^53-1", n.String())
	}
	return nil
}

func describeToken(tok json.Token) string {
	switch tok := tok.(type) {
	case nil:
		return "null"
	case json.Delim:
		return tok.String()
	case string:
		return "a string"
	case bool:
		return "a boolean"
	default:
		return "a number"
	}
}
