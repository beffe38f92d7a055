package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/kapsel-io/kapsel/api/openapi"
)

// maxManagementBody bounds the JSON of management requests.
const maxManagementBody = 1 << 20

// bodies are the types of the JSON bodies that routes take, by method and path. A route that isn't named here takes none.
var bodies = map[string]reflect.Type{
	"POST /api/v1/endpoints":                                 reflect.TypeFor[openapi.CreateEndpointJSONRequestBody](),
	"POST /api/v1/endpoints/:endpoint_id/destinations":       reflect.TypeFor[openapi.AddDestinationJSONRequestBody](),
	"PATCH /api/v1/endpoints/:endpoint_id":                   reflect.TypeFor[openapi.UpdateEndpointJSONRequestBody](),
	"POST /api/v1/endpoints/:endpoint_id/secrets":            reflect.TypeFor[openapi.AddSecretJSONRequestBody](),
	"PATCH /api/v1/destinations/:destination_id":             reflect.TypeFor[openapi.UpdateDestinationJSONRequestBody](),
	"POST /api/v1/destinations/:destination_id/secrets":      reflect.TypeFor[openapi.AddSigningSecretJSONRequestBody](),
	"POST /api/v1/destinations/:destination_id/signing-keys": reflect.TypeFor[openapi.AddSigningKeyJSONRequestBody](),
	"PUT /api/v1/destinations/:destination_id/transport":     reflect.TypeFor[openapi.PutTransportJSONRequestBody](),
	"POST /api/v1/redeliveries":                              reflect.TypeFor[openapi.CreateRedeliveryJobJSONRequestBody](),
	"POST /api/v1/events/:event_id/erase":                    reflect.TypeFor[openapi.EraseEventJSONRequestBody](),
	"POST /api/v1/attestation/proofs":                        reflect.TypeFor[openapi.GetProofsJSONRequestBody](),
}

// checkBody reads a request's JSON before the generated code does and refuses what encoding/json would silently mend.
func (s *Server) checkBody(c *gin.Context) {
	if c.Request.Method == http.MethodGet {
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, maxManagementBody))
	if err != nil {
		s.fail(c, bodyError(err))
		return
	}
	if err := checkBytes(body, bodies[c.Request.Method+" "+c.FullPath()]); err != nil {
		s.fail(c, err)
		return
	}
	c.Request.Body = io.NopCloser(bytes.NewReader(body))
}

// checkBytes wants JSON of type t, or nothing where there is no type.
func checkBytes(body []byte, t reflect.Type) error {
	if t != nil {
		return checkJSON(body, t)
	}
	if len(body) > 0 {
		return malformed("This request takes no body. Send it without one.")
	}
	return nil
}

// checkJSON wants exactly the members of t, in their spelling, each once and of its type, no null, no NUL (which neither
// text nor jsonb can hold), no half of a character and nothing after it. The problem names the first member that is wrong.
func checkJSON(body []byte, t reflect.Type) error {
	if !utf8.Valid(body) {
		return malformed("The body is not UTF-8.")
	}
	if hasLoneSurrogate(body) {
		return malformed(`A \u escape is half of a surrogate pair and no character.`)
	}
	check := &jsonCheck{json.NewDecoder(bytes.NewReader(body))}
	check.dec.UseNumber()
	if err := check.value("", t); err != nil {
		return err
	}
	if _, err := check.dec.Token(); !errors.Is(err, io.EOF) {
		return malformed("There is something after the end of the JSON object.")
	}
	return nil
}

// hasLoneSurrogate looks for \ud800 to \udfff that is no half of a pair: encoding/json would put U+FFFD in its place. In
// JSON a backslash stands only in strings; what isn't JSON is found afterwards.
func hasLoneSurrogate(body []byte) bool {
	for i := 0; i < len(body)-1; i++ {
		if body[i] != '\\' {
			continue
		}
		i++ // the escaped character, which may be a backslash itself
		switch r := escaped(body[i:]); {
		case utf16.IsSurrogate(r) && i+5 < len(body) && body[i+5] == '\\' && utf16.DecodeRune(r, escaped(body[i+6:])) != utf8.RuneError:
			i += 10 // both
		case utf16.IsSurrogate(r):
			return true
		}
	}
	return false
}

// escaped reads u and four hexadecimal digits; anything else is 0.
func escaped(b []byte) rune {
	if len(b) < 5 || b[0] != 'u' {
		return 0
	}
	r, err := strconv.ParseUint(string(b[1:5]), 16, 16)
	if err != nil {
		return 0
	}
	return rune(r)
}

// jsonCheck walks through JSON and a type together.
type jsonCheck struct {
	dec *json.Decoder
}

func (j *jsonCheck) token() (json.Token, error) {
	tok, err := j.dec.Token()
	if err != nil {
		return nil, malformed("The body is not a JSON object (near byte %d).", j.dec.InputOffset())
	}
	return tok, nil
}

func (j *jsonCheck) value(path string, t reflect.Type) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	tok, err := j.token()
	if err != nil {
		return err
	}
	switch delim, _ := tok.(json.Delim); {
	case t == reflect.TypeFor[time.Time]():
		return moment(path, tok)
	case t.Kind() == reflect.Struct && delim == '{':
		return j.object(path, t)
	case t.Kind() == reflect.Map && delim == '{':
		return j.mapping(path, t.Elem())
	case t.Kind() == reflect.Slice && delim == '[':
		return j.array(path, t.Elem())
	}
	return scalar(path, t, tok)
}

func (j *jsonCheck) object(path string, t reflect.Type) error {
	types, required := members(t)
	seen := map[string]bool{}
	for j.dec.More() {
		name, err := j.name(path, seen)
		if err != nil {
			return err
		}
		if types[name] == nil {
			return invalidField(join(path, name), "is unknown. Known are %s", strings.Join(slices.Sorted(maps.Keys(types)), ", "))
		}
		if err := j.value(join(path, name), types[name]); err != nil {
			return err
		}
	}
	for _, name := range required {
		if !seen[name] {
			return invalidField(join(path, name), "is missing")
		}
	}
	_, err := j.token() // the closing bracket
	return err
}

// members returns the members of a generated type and which of them must be there.
func members(t reflect.Type) (types map[string]reflect.Type, required []string) {
	types = map[string]reflect.Type{}
	for f := range t.Fields() {
		name, flags, _ := strings.Cut(f.Tag.Get("json"), ",")
		types[name] = f.Type
		if flags != "omitempty" {
			required = append(required, name)
		}
	}
	return types, required
}

func (j *jsonCheck) mapping(path string, elem reflect.Type) error {
	seen := map[string]bool{}
	for j.dec.More() {
		name, err := j.name(path, seen)
		if err != nil {
			return err
		}
		if err := j.value(join(path, name), elem); err != nil {
			return err
		}
	}
	_, err := j.token()
	return err
}

// name reads a member's name, which mustn't come twice: two readers would disagree on which value counts.
func (j *jsonCheck) name(path string, seen map[string]bool) (string, error) {
	tok, err := j.token()
	if err != nil {
		return "", err
	}
	name, _ := tok.(string) // the decoder lets nothing else be a name
	if len(name) > 256 || strings.ContainsRune(name, 0) {
		return "", malformed("A member's name is too long or holds a NUL.")
	}
	if seen[name] {
		return "", invalidField(join(path, name), "is there twice")
	}
	seen[name] = true
	return name, nil
}

func (j *jsonCheck) array(path string, elem reflect.Type) error {
	for i := 0; j.dec.More(); i++ {
		if err := j.value(path+"["+strconv.Itoa(i)+"]", elem); err != nil {
			return err
		}
	}
	_, err := j.token()
	return err
}

// scalar checks what is no object and no array, and refuses those where a scalar belongs.
func scalar(path string, t reflect.Type, tok json.Token) error {
	wanted, ok := "a JSON object", false
	switch t.Kind() {
	case reflect.String:
		text, isString := tok.(string)
		wanted, ok = "a string without NUL", isString && !strings.ContainsRune(text, 0)
	case reflect.Bool:
		wanted = "true or false"
		_, ok = tok.(bool)
	case reflect.Int, reflect.Int64:
		number, isNumber := tok.(json.Number)
		_, err := strconv.ParseInt(number.String(), 10, 64)
		wanted, ok = "an integer", isNumber && err == nil
	case reflect.Float64:
		number, isNumber := tok.(json.Number)
		_, err := number.Float64()
		wanted, ok = "a number", isNumber && err == nil
	case reflect.Slice:
		wanted = "an array"
	}
	switch {
	case ok:
		return nil
	case path == "":
		return malformed("The body must be %s.", wanted)
	default:
		return invalidField(path, "must be %s", wanted)
	}
}

// moment wants a time of RFC 3339, as encoding/json does.
func moment(path string, tok json.Token) error {
	text, _ := tok.(string)
	if _, err := time.Parse(time.RFC3339, text); err != nil {
		return invalidField(path, "must be a time such as 2026-11-24T08:00:00Z")
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
