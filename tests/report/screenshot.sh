#!/bin/sh
# Draws a page of `report` in a browser: light, dark and printed, for a person to look at, and checks that the page asked for
# nothing and that each picture shows something.
#
# usage: screenshot.sh RESULT... FOLDER
# The pictures are FOLDER/light.png, FOLDER/dark.png and FOLDER/print.pdf. Without a browser the script says so and ends with
# status 77.
set -eu

if [ $# -lt 2 ]; then
    echo "usage: $0 RESULT... FOLDER" >&2
    exit 2
fi
program=${PROGRAM:-$(dirname "$0")/../../target/release/gguf-shorten}
browser=
for name in ${BROWSER:-} chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then
        browser=$name
        break
    fi
done
if [ -z "$browser" ]; then
    echo "skipped: there is no Chromium (Debian: apt-get install chromium)"
    exit 77
fi

# The last argument is the folder.
n=$#
for folder in "$@"; do :; done
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT INT TERM

i=0
for result in "$@"; do
    i=$((i + 1))
    shift
    [ "$i" -eq "$n" ] || set -- "$@" "$result"
done
"$program" report "$@" -q -o "$folder/page.html"

# No sandbox: that of Chromium does not start for root, and the page is ours.
draw() {
    "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$profile" "$@" \
        "file://$folder/page.html" 2>"$profile/messages"
    if grep -iE 'refused to|blocked|ERR_|violates' "$profile/messages"; then
        echo "the browser complains about the page" >&2
        exit 1
    fi
}
size=1240,${HEIGHT:-3200}
draw --window-size="$size" --screenshot="$folder/light.png" >/dev/null
draw --window-size="$size" --force-dark-mode --blink-settings=preferredColorScheme=0 \
    --screenshot="$folder/dark.png" >/dev/null
draw --no-pdf-header-footer --print-to-pdf="$folder/print.pdf" >/dev/null
for file in light.png dark.png print.pdf; do
    # An empty page has less.
    if [ "$(wc -c <"$folder/$file")" -lt 20000 ]; then
        echo "$file shows next to nothing" >&2
        exit 1
    fi
done
if cmp -s "$folder/light.png" "$folder/dark.png"; then
    echo "the dark page is the light one" >&2
    exit 1
fi
echo "light.png, dark.png and print.pdf are in $folder"
