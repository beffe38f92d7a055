package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// secretForm is what the secrets of a scheme look like.
type secretForm struct {
	name  string
	check func([]byte) error // says what a secret must be; never with any part of it
}

// The forms.
var (
	anyBytes     = secretForm{"bytes", checkLength}
	standardKey  = secretForm{"standard", checkStandardKey}
	userPassword = secretForm{"basic", checkUserPassword}
	headerValue  = secretForm{"header", checkHeaderValue}
)

// usable leaves out what can't be a secret of this form. Nothing else is stored; but an empty one could be used by
// anybody.
func (f secretForm) usable(secrets [][]byte) [][]byte {
	var usable [][]byte
	for _, secret := range secrets {
		if f.check != nil && f.check(secret) == nil {
			usable = append(usable, secret)
		}
	}
	return usable
}

func checkLength(secret []byte) error {
	if n := len(secret); n < MinSecretBytes || n > MaxSecretBytes {
		return fmt.Errorf("must have %d to %d bytes, not %d", MinSecretBytes, MaxSecretBytes, n)
	}
	return nil
}

// checkHeaderValue wants what arrives as it was sent: white space around a value is none of it.
func checkHeaderValue(secret []byte) error {
	if err := checkLength(secret); err != nil {
		return err
	}
	if text := string(secret); !httpguts.ValidHeaderFieldValue(text) || strings.Trim(text, " \t") != text {
		return errors.New("must be sendable in a header: no control characters, and no white space around it")
	}
	return nil
}

// checkUserPassword wants what RFC 7617 (section 2) allows: a user name without colon, a colon, a password, no control
// characters. The password alone is what nobody must guess.
func checkUserPassword(secret []byte) error {
	user, password, colon := bytes.Cut(secret, []byte(":"))
	switch control := func(r rune) bool { return r < ' ' || r == 0x7f }; {
	case !colon || len(user) == 0 || bytes.ContainsFunc(secret, control):
		return errors.New("must be a user name, a colon and a password, without control characters")
	case len(password) < MinSecretBytes || len(secret) > MaxSecretBytes:
		return fmt.Errorf("must have a password of at least %d bytes, and at most %d bytes in all", MinSecretBytes, MaxSecretBytes)
	}
	return nil
}

// NeedsSecrets reports whether the scheme has secrets.
func (s Source) NeedsSecrets() bool { return schemes[s.Scheme].form.check != nil }

// TakesSecretsOf reports whether the secrets of another source may stay when its scheme becomes this one.
func (s Source) TakesSecretsOf(other Source) bool {
	return schemes[s.Scheme].form.name == schemes[other.Scheme].form.name
}

// ValidateSecrets checks number and form of an endpoint's secrets. The error never holds any part of one.
func (s Source) ValidateSecrets(secrets [][]byte) error {
	switch needed := s.NeedsSecrets(); {
	case !needed && len(secrets) > 0:
		return fmt.Errorf("source: secrets have no meaning for scheme %q", s.Scheme)
	case needed && (len(secrets) == 0 || len(secrets) > MaxSecrets):
		return fmt.Errorf("source: secrets must be 1 to %d for scheme %q, not %d", MaxSecrets, s.Scheme, len(secrets))
	}
	for i, secret := range secrets {
		if err := schemes[s.Scheme].form.check(secret); err != nil {
			return fmt.Errorf("source: secrets[%d] %w", i, err)
		}
	}
	return nil
}

// ValidateSecret checks one more secret of an endpoint.
func (s Source) ValidateSecret(secret []byte) error {
	if !s.NeedsSecrets() {
		return fmt.Errorf("source: secret has no meaning for scheme %q", s.Scheme)
	}
	if err := schemes[s.Scheme].form.check(secret); err != nil {
		return fmt.Errorf("source: secret %w", err)
	}
	return nil
}
