//go:build js && wasm

// Command web is kapsel-verify for the browser: the same Go code, as WebAssembly, behind one JavaScript function. The page
// around it is in web/page; web/build puts both together.
package main

import (
	"encoding/hex"
	"strings"
	"syscall/js"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/report"
)

func main() {
	js.Global().Set("kapselVerify", js.FuncOf(func(_ js.Value, args []js.Value) any {
		r, err := check(args[0])
		if err != nil {
			return map[string]any{"verified": false, "text": report.Rejection(err)}
		}
		return map[string]any{"verified": true, "delivered": r.Delivered(), "text": report.Text(r)}
	}))
	js.Global().Call("kapselReady")
	select {} // the function stays callable
}

// check takes {proof, key, origin, payload, url, delivery}: proof and payload are Uint8Arrays, the others strings, and all
// but proof and key may be null.
func check(in js.Value) (*verify.Result, error) {
	opts, err := options(in)
	if err != nil {
		return nil, err
	}
	proof := bytesOf(in.Get("proof"))
	if verify.IsTLogProof(proof) {
		return verify.TLog(proof, opts)
	}
	return verify.Package(proof, opts)
}

func options(in js.Value) (verify.Options, error) {
	var o verify.Options
	key := strings.TrimSpace(in.Get("key").String())
	if raw, err := hex.DecodeString(key); err == nil && len(raw) == 32 {
		o.PublicKey = raw
	} else {
		if _, _, err := verify.ParseVKey(key); err != nil {
			return o, err
		}
		o.VKey = key
	}
	if v := in.Get("origin"); v.Type() == js.TypeString {
		o.Origin = v.String()
	}
	for name, field := range map[string]**string{"url": &o.URL, "delivery": &o.Delivery} {
		if v := in.Get(name); v.Type() == js.TypeString {
			s := v.String()
			*field = &s
		}
	}
	if v := in.Get("payload"); v.Type() == js.TypeObject {
		b := bytesOf(v)
		o.Payload = &b
	}
	return o, nil
}

func bytesOf(v js.Value) []byte {
	b := make([]byte, v.Length())
	js.CopyBytesToGo(b, v)
	return b
}
