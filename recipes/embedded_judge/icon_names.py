"""From an icon's file name to the words that a person would use: "shopping-cart-24-filled" is "shopping cart"."""

import re
from collections import Counter
from collections.abc import Collection

# Words of a style or size, where they end a name.
STYLES = frozenset(
    [
        "outline",
        "outlined",
        "filled",
        "fill",
        "line",
        "linear",
        "bold",
        "thin",
        "duotone",
        "twotone",
        "sharp",
        "rounded",
        "solid",
        "regular",
        "stroke",
        "broken",
        "remix",
        "duo",
        "negative",
        "expressive",
        "minimalistic",
        "alt",
        "alternate",
        "mini",
        "micro",
        "small",
        "large",
        "xs",
        "sm",
        "md",
        "lg",
        "xl",
        "loop",
        "static",
        "noborder",
        "color",
        "colored",
        "flat",
        "3d",
        "fluid",
        "multicolor",
        "glyph",
        "light",
        "dark",
        "dual",
        "curved",
        "variant",
        "round",
        "simple",
        "basic",
    ]
)
SOFT = frozenset(
    ["light", "dark", "round", "flat", "simple", "basic", "small", "large", "color", "line", "fill", "3d", "fluid"]
)  # also words of their own
NUMBERS = frozenset(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
SKIN = re.compile(r"(skin[- ]tone|(?<!traffic)-(light|medium|dark|medium-light|medium-dark)$|-type-[1-6])")
EMOJI = frozenset(
    [
        "noto",
        "noto-v1",
        "twemoji",
        "fluent-emoji",
        "fluent-emoji-flat",
        "fluent-emoji-high-contrast",
        "emojione",
        "emojione-monotone",
        "fxemoji",
        "streamline-emojis",
    ]
)
NUMBERED = ("icon-park",)  # families that count alternatives in words: "key-two"
BAGS = ("streamline", "covid")  # families whose names begin with categories
BRANDS = re.compile(
    r"(^|-)(logos?|brands?|flags?|keycap|regional|emblem|apple-(music|podcasts)|windows-?\d*|google|facebook|twitter|youtube|"
    r"instagram|tiktok|whatsapp|telegram|github|gitlab|git-?hub|linkedin|pinterest|reddit|snapchat|spotify|skype|slack|discord|"
    r"dribbble|behance|figma|sketch-app|adobe|photoshop|illustrator|android|ios|macos|linux|ubuntu|debian|microsoft|xbox|"
    r"playstation|nintendo|steam|twitch|tumblr|vimeo|vk|weibo|wechat|weixin|alipay|paypal|visa|mastercard|amex|stripe|amazon|"
    r"aws|azure|netflix|airbnb|uber|wordpress|drupal|joomla|magento|shopify|npm|nodejs|react|vuejs|angular|python|java|"
    r"javascript|typescript|html5?|css3?|php|docker|kubernetes|bitcoin|ethereum|litecoin|dogecoin|monero|btc|eth|usdt|"
    r"mdi|chrome|firefox|safari|opera|edge-browser|internet-explorer|medium|dropbox|evernote|trello|asana|jira|zoom-app|"
    r"openai|chatgpt|claude|gemini|copilot|messenger|signal-app|tinder|yelp|foursquare|soundcloud|deezer|lastfm|quora|"
    r"stackoverflow|stack-overflow|codepen|jsfiddle|bootstrap|sass|less|gulp|grunt|webpack|vite|babel|graphql|mongodb|mysql|"
    r"postgresql|redis|oracle|ibm|sap|salesforce|hubspot|mailchimp|zendesk|intercom|qq|baidu|taobao|tencent|line-app|viber|"
    r"threads|mastodon|bluesky|patreon|kickstarter|ebay|etsy|tesla|bmw|audi|toyota|nvidia|intel|amd|samsung|huawei|xiaomi|"
    r"sony|nokia|blackberry|sogou|douban|zhihu|bilibili|codesandbox|gitee|aliyun|dingtalk|dingding|yuque|alibaba)(-|$|\d)"
)
WORD = re.compile(r"[a-z]+|[0-9]+")


def split(icon: str) -> list[str]:
    """Words of a name as it stands, digits apart from letters: "window2-filled" is window, 2, filled."""
    return WORD.findall(icon.lower())


def plain(set_name: str, icon: str, suffixes: Collection[str], icons: set[str]) -> tuple[str, str]:
    """The name without size and style, dashed, and the style that was cut off.

    `suffixes` are the set's own; one is cut where it is a word of style for sure, or where the set has the name without it.
    """
    name, cut = icon, []
    for suffix in sorted(suffixes, key=len, reverse=True):
        if suffix and name.endswith("-" + suffix):
            rest = name[: -len(suffix) - 1]
            if "" not in suffixes or rest in icons or not SOFT & set(suffix.split("-")):
                name, cut = rest, [suffix]
                break
    words = name.split("-")
    while len(words) > 1:
        last = words[-1]
        numbered = set_name.startswith(NUMBERED) and last in NUMBERS
        style = last in STYLES and (last not in SOFT or "-".join(words[:-1]) in icons)
        if not (style or numbered or re.fullmatch(r"\d+(px|x)?", last)):
            break
        cut.append(words.pop())
    if words[0] in ("outline", "solid", "filled", "round", "twotone", "baseline", "sharp") and len(words) > 1:  # ic, il
        cut.append(words.pop(0))
    return "-".join(words), "-".join(w for w in cut if not re.fullmatch(r"[\d-]+(px|x)?", w))


def phrase(set_name: str, dashed: str) -> str:
    """What a person would say, or "" where the name means nothing in a picture (letters, numbers, brands, flags)."""
    if BRANDS.search(dashed) and dashed != "flag":
        return ""
    if set_name in EMOJI and SKIN.search(dashed):
        return ""
    words = [{"tv": "television", "tvs": "televisions"}.get(w, w) for w in split(dashed) if not w.isdigit()]
    while words and words[0] in ("md", "ic", "icon", "icons"):
        words.pop(0)
    if set_name.startswith(BAGS) and len(words) > 3:
        words = words[-2:]
    limit = 7 if {"with", "in", "from", "of", "on"} & set(words) else 4
    if not words or len(words) > limit or max(len(w) for w in words) < 3:
        return ""
    if any(len(w) == 1 and w not in "axtyo" for w in words) or len("".join(words)) > 40:
        return ""
    return " ".join(words)


def known_words(phrases_by_set: dict[str, set[str]], least: int = 4) -> set[str]:
    """Words that at least `least` sets use."""
    uses: Counter[str] = Counter()
    for phrases in phrases_by_set.values():
        uses.update({w for p in phrases for w in p.split()})
    return {w for w, n in uses.items() if n >= least and len(w) > 2}


def parted(text: str, known: set[str]) -> str:
    """Run-together words that no other set knows, in two known ones: "batterycharging" is "battery charging"."""
    found = []
    for word in text.split():
        cuts = [(word[:k], word[k:]) for k in range(3, len(word) - 2)] if word not in known and len(word) > 6 else []
        halves = [(a, b) for a, b in cuts if a in known and b in known]
        found += max(halves, key=lambda ab: min(map(len, ab))) if halves else [word]
    return " ".join(found)
