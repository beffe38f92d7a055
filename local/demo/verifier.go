package demo

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

const verifierPackage = "github.com/kapsel-io/kapsel/verify/cmd/kapsel-verify"

// buildVerifier builds the auditor's program from its own module. The demo runs it as a process of its own and gives it
// a file and a public key; it shares nothing with what made the proof.
func (r *run) buildVerifier(ctx context.Context) error {
	r.verifier = filepath.Join(r.Dir, "kapsel-verify")
	output, err := exec.CommandContext(ctx, "go", "build", "-o", r.verifier, verifierPackage).CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the verifier, which needs the go command and this repository: %w: %s", err, output)
	}
	return nil
}

// verify runs kapsel-verify and returns what it printed.
func (r *run) verify(ctx context.Context, proof string, more ...string) (string, error) {
	args := append([]string{"--proof", proof, "--public-key", r.PublicKey}, more...)
	output, err := exec.CommandContext(ctx, r.verifier, args...).CombinedOutput()
	return strings.TrimRight(string(output), "\n"), err
}

// rejected says whether the verifier gave its verdict, exit status 1; anything else is not a no.
func rejected(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == 1
}
