"""The language of criteria: text that users write to a tree and back, as in `geo:US and not path:/admin/*`.

Tests are joined by `and`, `or` and `not` (it binds most, `or` least) and parentheses. A test is one of

    geo:US geo:europe      the client's country (ISO 3166-1, two letters) or continent (EU, OC or its name)
    cidr:10.0.0.0/8        the client's network or address
    header:NAME  cookie:NAME  query:NAME            it is there
    header:NAME=VALUE  cookie:NAME=VALUE  query:NAME=VALUE
    user-agent:VALUE  method:VALUE  host:VALUE  path:VALUE
    random                 every request

Of the continents' own codes AF, AS, NA and SA are countries' too and mean these; AN is neither: it is no country's any
more. VALUE is compared as it is; with a `*` in it the whole value is compared and `*` stands for any characters; behind
`~` it is a regular expression of Python that is searched for. Names and values end at white space, parentheses and
double quotes; others are written in double quotes, where \\" is a double quote and \\\\ a backslash (any other
backslash is itself). Characters beyond latin-1 are refused: a request's head is read as latin-1 and cannot have them.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import warnings
from typing import TYPE_CHECKING

from agent.select.criteria import Always, And, Cidr, Criteria, Field, Geo, Head, Match, Not, Or

if TYPE_CHECKING:
    from lark import Lark, Token, Tree

TEXT_LIMIT_CHARS = 4096
LEAF_LIMIT = 64
DEPTH_LIMIT = 32  # of the tree; parentheses alone do not count
REGEX_LIMIT_CHARS = 512
REGEX_LIMIT_PARENTHESES = 64  # Python's parser of regular expressions calls itself for each

# Looking behind keeps values at their keywords: white space is dropped between all other tokens. The contextual lexer
# offers BARE, NAME and PATTERN only where they can stand, so `query:or` is no operator.
_GRAMMAR = r"""
?start: either
?either: both (_OR both)*
?both: negation (_AND negation)*
?negation: _NOT negation -> negated
    | "(" either ")"
    | test
test: RANDOM
    | PLACE (BARE | QUOTED)
    | FIELD _value
    | NAMED (NAME | QUOTED) (_EQUALS _value)?
_value: BARE | QUOTED | TILDE (PATTERN | QUOTED)

_AND: /and(?![^\s()])/i
_OR: /or(?![^\s()])/i
_NOT: /not(?![^\s()])/i
RANDOM: /random(?![^\s()])/i
PLACE: /(?:geo|cidr):/i
FIELD: /(?:user-agent|method|host|path):/i
NAMED: /(?:header|cookie|query):/i
NAME: /(?<=:)[^\s()"=]+/
BARE: /(?<=[:=])[^\s()"~][^\s()"]*/
PATTERN: /(?<=~)[^\s()"]+/
QUOTED: /(?<=[:=~])"(?:[^"\\]|\\[\s\S])*"/
_EQUALS: /(?<=\S)=/
TILDE: /(?<=[:=])~/
%ignore /\s+/
"""

_SAMPLES = {
    "geo": "geo:US",
    "cidr": "cidr:10.0.0.0/8",
    "header": "header:X-Name or header:X-Name=value",
    "cookie": "cookie:name or cookie:name=value",
    "query": "query:name or query:name=value",
    "user-agent": "user-agent:curl/*",
    "method": "method:GET",
    "host": "host:example.com",
    "path": "path:/api/*",
    "random": "random",
}
# ISO 3166-1, and XK (Kosovo), which every geographic database has.
_COUNTRIES = """
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA
CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA
GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP
KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS
MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS
RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW
TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW
"""
_CONTINENTS = {
    "africa": "AF",
    "antarctica": "AN",
    "asia": "AS",
    "europe": "EU",
    "north-america": "NA",
    "oceania": "OC",
    "south-america": "SA",
}
_CONTINENT_NAMES = {f"continent:{code}": name for name, code in _CONTINENTS.items()}
_CONTINENT_CODES = ("EU", "OC")  # those that are no country's
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_PARAMETER = re.compile(r"[^&=#]+")
_HOST = re.compile(r"[^\s/:@?#\[\]]*|\[[^\s/@?#\[\]]*\]")
_BARE_NAME = re.compile(r'[^\s()"=]+')
_BARE_VALUE = re.compile(r'[^\s()"~][^\s()"]*')
_BARE_PATTERN = re.compile(r'[^\s()"]+')
_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}  # a head's other bytes have no case


class CriteriaError(ValueError):
    """What is wrong and what to do about it, in one line; `column` counts the text's characters from 1."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))
        self.column = column


def parse(text: str) -> Criteria:
    """The tree that a text stands for; CriteriaError, and no other, if it stands for none."""
    if len(text) > TEXT_LIMIT_CHARS:
        raise CriteriaError(f"longer than {TEXT_LIMIT_CHARS} characters: shorten it", TEXT_LIMIT_CHARS + 1)
    from lark.exceptions import UnexpectedCharacters, UnexpectedToken

    try:
        tree = _parser().parse(text)
    except UnexpectedCharacters as error:
        raise _fault(text, error.pos_in_stream or 0, set(error.allowed or ())) from None
    except UnexpectedToken as error:
        at = len(text.rstrip()) if error.token.type == "$END" else error.token.start_pos or 0
        raise _fault(text, at, error.expected) from None
    criteria, _ = _build(tree, 1, 0)
    return criteria


@functools.cache
def _parser() -> Lark:
    """Made at the first use: processes that only write criteria, or get them as JSON, do without lark."""
    from lark import Lark

    return Lark(_GRAMMAR, parser="lalr", propagate_positions=True)


def _fault(text: str, at: int, expected: set[str]) -> CriteriaError:
    """Of a text that is no sentence of the grammar; `expected` names the terminals that could stand at `at`."""
    before, found = text[:at], text[at : at + 1]
    if expected & {"NAME", "BARE", "PATTERN"}:
        return CriteriaError(_value_missing(before, found), at + 1)
    if "RANDOM" in expected:
        return CriteriaError(_test_missing(text, at), at + 1)
    if not found:
        return CriteriaError("a ')' is missing at the end: add it", at + 1)
    if found == ")":
        return CriteriaError("no '(' belongs to this ')': remove it, or open it", at + 1)
    if before[-1:].isspace() and found not in '="':
        return CriteriaError("'and' or 'or' is missing between two tests: write one here", at + 1)
    return CriteriaError(
        f"{found!r} cannot stand here: put a whole value with spaces, parentheses or quotes in double quotes, as in"
        r' header:X-Name="a (\"b\")", without space around "="',
        at + 1,
    )


def _value_missing(before: str, found: str) -> str:
    if found == '"' and before[-1:] in (":", "=", "~"):
        return "this double quote is never closed: add one behind the value"
    keyword = re.search(r"([a-z-]+):\Z", before.rstrip(), re.IGNORECASE)
    if keyword is not None:
        name = keyword[1].lower()
        return f"{name} needs something directly behind its colon: write {_SAMPLES[name]}"
    sign = before.rstrip()[-1:]
    return f'nothing stands directly behind {sign!r}: write a value there, "" for an empty one'


def _test_missing(text: str, at: int) -> str:
    word = re.compile(r'[^\s():="]*').match(text, at)
    name = word[0].lower() if word is not None else ""
    if not text.strip():
        return "no criteria: write random for every request"
    if at >= len(text.rstrip()):
        return "a test is missing at the end: add one, such as geo:US"
    if name in ("and", "or") or text[at] == ")":
        return f"a test is missing in front of {name or ')'!r}: add one, such as geo:US"
    if name in _SAMPLES:
        return f"{name} cannot stand like this: write {_SAMPLES[name]}"
    known = ", ".join(_SAMPLES)
    return f"unknown predicate {name or text[at]!r}: write one of {known}, as in header:X-Name=value"


def _build(tree: Tree[Token], depth: int, leaves: int) -> tuple[Criteria, int]:
    """The criteria, and the number of leaves up to their last; `leaves` stand on their left."""
    column = (tree.meta.start_pos if not tree.meta.empty else 0) + 1
    if depth > DEPTH_LIMIT:
        raise CriteriaError(f"nested more than {DEPTH_LIMIT} deep: write it flatter", column)
    if tree.data not in ("negated", "both", "either"):
        if leaves == LEAF_LIMIT:
            raise CriteriaError(f"more than {LEAF_LIMIT} tests: join some in a regular expression", column)
        return _leaf(tree), leaves + 1
    children = []
    for subtree in tree.children:
        child, leaves = _build(subtree, depth + 1, leaves)  # type: ignore[arg-type]
        children.append(child)
    if tree.data == "negated":
        return Not(children[0]), leaves
    return (And if tree.data == "both" else Or)(tuple(children)), leaves


def _leaf(tree: Tree[Token]) -> Criteria:
    tokens: list[Token] = tree.children  # type: ignore[assignment]
    kind = tokens[0].rstrip(":").lower()
    if kind == "random":
        return Always()
    if kind == "geo":
        return _geo(tokens[1])
    if kind == "cidr":
        return _cidr(tokens[1])
    if kind == "user-agent":
        return _compared(Field.HEADER, kind, tokens[1:])
    field = Field(kind)
    if field in (Field.HEADER, Field.COOKIE, Field.QUERY):
        return _compared(field, _name(field, tokens[1]), tokens[2:])
    return _compared(field, "", tokens[1:])


def _geo(token: Token) -> Geo:
    code = _text(token)
    if (continent := _CONTINENTS.get(code.lower())) is not None:
        return Geo(f"continent:{continent}")
    if code.upper() in _CONTINENT_CODES:
        return Geo(f"continent:{code.upper()}")
    if code.upper() in _COUNTRIES.split():
        return Geo(code.upper())
    raise _wrong(
        f"unknown place {code!r}: write a country's two letters of ISO 3166-1, such as US or GB, or one of"
        f" {', '.join(_CONTINENTS)}",
        token,
    )


def _cidr(token: Token) -> Cidr:
    text = _text(token)
    try:
        network = ipaddress.ip_network(text, strict=False)
        address = ipaddress.ip_address(text.partition("/")[0])
    except ValueError:
        raise _wrong(f"{text!r} is no network: write one such as 10.0.0.0/8 or 2001:db8::/32", token) from None
    if "%" in text:
        raise _wrong("clients' addresses have no zone: leave out '%' and what follows", token)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        raise _wrong("clients' IPv4 addresses are never seen as IPv6: write the network as IPv4", token)
    if address != network.network_address:
        raise _wrong(f"{text} is an address within a network: write {network} for all of that", token)
    return Cidr(network)


def _name(field: Field, token: Token) -> str:
    name = _text(token)
    if field is Field.QUERY:
        if not _PARAMETER.fullmatch(name):
            raise _wrong(f"{name!r} cannot be a parameter's name: write it as in the target, without & = #", token)
        return name
    if not _TOKEN.fullmatch(name):
        raise _wrong(f"{name!r} cannot be a {field}'s name: use letters, digits and !#$%&'*+-.^_`|~", token)
    return name.lower() if field is Field.HEADER else name


def _compared(field: Field, name: str, tokens: list[Token]) -> Head:
    """A test by what stands behind the name or the keyword: nothing, a value, or "~" and a regular expression."""
    if not tokens:
        return Head(field, name, Match.PRESENT)
    value = _text(tokens[-1])
    if len(tokens) == 2:
        _check_regex(value, tokens[-1])
        return Head(field, name, Match.REGEX, value)
    if field is Field.HOST:
        value = value.translate(_ASCII_LOWER)
        if not _HOST.fullmatch(value):
            raise _wrong("a host has no port, scheme or path: write host:example.com or host:[2001:db8::1]", tokens[-1])
    if field is Field.PATH and ("?" in value or "#" in value):
        raise _wrong("a path ends at '?' and '#': test what follows with query:name=value", tokens[-1])
    return Head(field, name, Match.GLOB if "*" in value else Match.EQUAL, value)


def _text(token: Token) -> str:
    """What a token stands for: itself, or what its quotes hold."""
    text = str(token) if token.type != "QUOTED" else re.sub(r'\\(["\\])', r"\1", token[1:-1])
    beyond = next((c for c in text if c > "\xff"), None)
    if beyond is not None:
        raise _wrong(f"no head has the character {beyond!r}: write what clients send, such as %C3%A9", token)
    return text


def _check_regex(value: str, token: Token) -> None:
    if len(value) > REGEX_LIMIT_CHARS:
        raise _wrong(f"regular expressions are limited to {REGEX_LIMIT_CHARS} characters: shorten it", token)
    if value.count("(") > REGEX_LIMIT_PARENTHESES:
        raise _wrong(f"regular expressions are limited to {REGEX_LIMIT_PARENTHESES} parentheses: simplify it", token)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of what later versions of Python will read in another way
            re.compile(value)
    except re.error as error:
        raise _wrong(f"bad regular expression: {error.msg}: correct it", token) from None
    except (ValueError, OverflowError, RecursionError, Warning) as error:
        raise _wrong(f"bad regular expression: {error}: correct it", token) from None


def _wrong(message: str, token: Token) -> CriteriaError:
    return CriteriaError(message, (token.start_pos or 0) + 1)


def write(criteria: Criteria) -> str:
    """The text of a tree that `parse` made, in one way only; parsing it gives the tree back."""
    if isinstance(criteria, Not):
        return f"not {_within(criteria.child, (And, Or))}"
    if isinstance(criteria, And):
        return " and ".join(_within(child, (And, Or)) for child in criteria.children)
    if isinstance(criteria, Or):
        return " or ".join(_within(child, Or) for child in criteria.children)
    if isinstance(criteria, Geo):
        return f"geo:{_CONTINENT_NAMES.get(criteria.code, criteria.code)}"
    if isinstance(criteria, Cidr):
        return f"cidr:{criteria.network}"
    return _write_head(criteria) if isinstance(criteria, Head) else "random"


def _within(child: Criteria, looser: type | tuple[type, ...]) -> str:
    return f"({write(child)})" if isinstance(child, looser) else write(child)


def _write_head(head: Head) -> str:
    regex = head.match is Match.REGEX
    value = "~" * regex + _quoted(head.value, _BARE_PATTERN if regex else _BARE_VALUE)
    if head.field not in (Field.HEADER, Field.COOKIE, Field.QUERY):
        return f"{head.field}:{value}"
    if head.match is Match.PRESENT:
        return f"{head.field}:{_quoted(head.name, _BARE_NAME)}"
    if head.field is Field.HEADER and head.name == "user-agent":
        return f"user-agent:{value}"
    return f"{head.field}:{_quoted(head.name, _BARE_NAME)}={value}"


def _quoted(text: str, bare: re.Pattern[str]) -> str:
    if bare.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
