// Command build makes the static page that verifies proofs in a browser: go run ./web/build -o DIR, in the module's folder.
// The result needs no server. The same sources and the same Go give the same bytes, so that anybody can check a published
// page.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	out := flag.String("o", "dist", "`directory` for the page; made if it doesn't exist")
	flag.Parse()
	if err := build(*out); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

func build(out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", out, err)
	}
	module, err := goCommand("list", "-m", "-f", "{{.Dir}}", "github.com/kapsel-io/kapsel/verify")
	if err != nil {
		return err
	}
	goroot, err := goCommand("env", "GOROOT")
	if err != nil {
		return err
	}
	page := filepath.Join(module, "web", "page")
	for to, from := range map[string]string{
		"index.html":   filepath.Join(page, "index.html"),
		"style.css":    filepath.Join(page, "style.css"),
		"page.js":      filepath.Join(page, "page.js"),
		"wasm_exec.js": filepath.Join(goroot, "lib", "wasm", "wasm_exec.js"),
	} {
		b, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("read page: %w", err)
		}
		if err := os.WriteFile(filepath.Join(out, to), b, 0o644); err != nil {
			return fmt.Errorf("write page: %w", err)
		}
	}
	return verifier(module, filepath.Join(out, "verifier.js"))
}

// verifier compiles the WebAssembly and packs it into a script.
func verifier(module, to string) error {
	wasm := to + ".wasm"
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", wasm, "./web")
	cmd.Dir = module
	if abs, err := filepath.Abs(wasm); err == nil {
		cmd.Args[len(cmd.Args)-2] = abs
	}
	// Outside the workspace: the page is made of what verify's own go.mod says.
	cmd.Env = append(os.Environ(), "GOOS=js", "GOARCH=wasm", "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile: %w\n%s", err, b)
	}
	b, err := os.ReadFile(wasm)
	if err != nil {
		return fmt.Errorf("read WebAssembly: %w", err)
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	if _, err := z.Write(b); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	script := `const kapselWASM = "` + base64.StdEncoding.EncodeToString(packed.Bytes()) + "\";\n"
	if err := os.WriteFile(to, []byte(script), 0o644); err != nil {
		return fmt.Errorf("write verifier: %w", err)
	}
	return os.Remove(wasm)
}

func goCommand(args ...string) (string, error) {
	b, err := exec.Command("go", args...).Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(b)), nil
}
