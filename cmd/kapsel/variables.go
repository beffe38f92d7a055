package main

import (
	"reflect"
	"slices"
	"strings"
)

// variables is the part of a command's help that tells its variables: see Config.
func variables(command string) string {
	var b strings.Builder
	b.WriteString("Variables:\n")
	for field := range reflect.TypeFor[Config]().Fields() {
		if !slices.Contains(strings.Fields(field.Tag.Get("for")), command) {
			continue
		}
		text := field.Tag.Get("help")
		if value, ok := field.Tag.Lookup("envDefault"); ok {
			text += " Default: " + value + "."
		}
		b.WriteString("  " + field.Tag.Get("env") + "\n" + wrap(text, "      ", 90))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// wrap breaks text into indented lines of at most width bytes.
func wrap(text, indent string, width int) string {
	var b strings.Builder
	line := indent
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = indent
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	return b.String() + line + "\n"
}
