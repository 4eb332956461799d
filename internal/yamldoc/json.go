package yamldoc

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf16"
)

// fromJSON replaces the escapes in JSON that YAML does not have by the characters themselves. It returns anything else unchanged.
func fromJSON(data []byte) []byte {
	if rest := bytes.TrimLeft(data, " \t\r\n"); len(rest) == 0 || rest[0] != '{' {
		return data
	}
	if !bytes.Contains(data, []byte(`\/`)) && !bytes.Contains(bytes.ToLower(data), []byte(`\ud`)) || !json.Valid(data) {
		return data
	}
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			out = append(out, data[i])
			continue
		}
		i++ // valid JSON does not end here
		switch data[i] {
		case '/':
			out = append(out, '/')
		case 'u':
			first := unit(data[i+1:])
			if !utf16.IsSurrogate(first) {
				out = append(out, '\\', 'u')
				continue
			}
			whole, width := utf16.DecodeRune(first, -1), 4
			if bytes.HasPrefix(data[i+5:], []byte(`\u`)) {
				if pair := utf16.DecodeRune(first, unit(data[i+7:])); pair != '\uFFFD' {
					whole, width = pair, 10
				}
			}
			out = append(out, string(whole)...)
			i += width
		default:
			out = append(out, '\\', data[i])
		}
	}
	return out
}

// unit returns the number in the first four hexadecimal digits of data, or -1 if there are none.
func unit(data []byte) rune {
	n, err := strconv.ParseUint(string(data[:min(4, len(data))]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(n)
}
