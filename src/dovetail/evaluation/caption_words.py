"""The English words that captions are parsed by: colors, sizes, counts, prepositions, verbs, and plurals of nouns."""

from collections.abc import Mapping
from functools import lru_cache


def word_set(words: str) -> frozenset[str]:
    """Words between spaces, as a set."""
    return frozenset(words.split())


COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")  # contrasts
COLOR_FAMILY: Mapping[str, str] = {  # a color word -> words that it must not be contrasted with, by their first letters
    **{color: color for color in COLORS}, "grey": "gray", "silver": "gray white", "teal": "blue green",
    "turquoise": "blue green", "cyan": "blue green", "aqua": "blue green", "navy": "blue black", "indigo": "blue purple",
    "azure": "blue", "violet": "purple pink", "lavender": "purple pink", "lilac": "purple pink", "magenta": "pink purple red",
    "fuchsia": "pink purple", "rose": "pink red", "crimson": "red", "scarlet": "red orange", "maroon": "red brown",
    "burgundy": "red brown purple", "gold": "yellow orange brown", "golden": "yellow orange brown",
    "beige": "brown yellow white", "cream": "white yellow", "ivory": "white yellow", "tan": "brown orange yellow",
    "khaki": "brown green yellow", "olive": "green", "lime": "green yellow", "mint": "green", "amber": "orange yellow brown",
    "coral": "orange pink red", "salmon": "pink orange red", "peach": "orange pink", "mauve": "purple pink",
    "blond": "yellow brown", "blonde": "yellow brown", "auburn": "brown red orange", "bronze": "brown orange",
    "copper": "brown orange", "charcoal": "gray black", "emerald": "green", "ruby": "red",
}  # fmt: skip
NEAR_COLORS: Mapping[str, str] = {"red": "orange", "orange": "red", "purple": "pink", "pink": "purple", "grey": "gray"}
COLOR_NOUNS = word_set(
    """
    orange gold silver rose violet lavender peach lime olive salmon cream coral mint copper bronze ruby
    """
)
SHADES = word_set(
    """
    light dark pale bright deep vivid pastel neon soft muted faded hot sky navy royal forest baby off
    """
)
SHADE_ONLY_BEFORE = {  # words that are a shade only before these colors
    "hot": {"pink"}, "sky": {"blue"}, "navy": {"blue"}, "royal": {"blue"}, "forest": {"green"}, "baby": {"blue", "pink"},
    "off": {"white"},
}  # fmt: skip

# Adjectives that can be seen, with what would be seen instead.
OPPOSITES: Mapping[str, tuple[str, ...]] = {
    "big": ("small",), "large": ("small",), "huge": ("tiny",), "giant": ("tiny",), "small": ("large",), "little": ("large",),
    "tiny": ("huge",), "tall": ("short",), "long": ("short",), "short": ("long",), "wide": ("narrow",), "narrow": ("wide",),
    "thick": ("thin",), "thin": ("thick",), "fat": ("thin",), "slim": ("fat",), "chubby": ("thin",), "old": ("new",),
    "new": ("old",), "modern": ("old",), "ancient": ("modern",), "vintage": ("modern",), "retro": ("modern",),
    "antique": ("modern",), "young": ("old",), "elderly": ("young",), "old-fashioned": ("modern",), "open": ("closed",),
    "closed": ("open",), "empty": ("full",), "full": ("empty",), "wet": ("dry",), "dry": ("wet",), "clean": ("dirty",),
    "dirty": ("clean",), "broken": ("intact",), "lit": ("unlit",), "straight": ("curved",), "curved": ("straight",),
    "curly": ("straight",), "sharp": ("blunt",), "flat": ("round",), "happy": ("sad",), "sad": ("happy",),
    "smiling": ("crying",), "crying": ("smiling",), "angry": ("happy",), "sleeping": ("running",), "sitting": ("standing",),
    "standing": ("sitting",), "running": ("sleeping",), "flying": ("sitting",), "sunny": ("rainy",), "rainy": ("sunny",),
    "snowy": ("sunny",), "cloudy": ("clear",), "single": ("double",), "double": ("single",), "bare": ("covered",),
    "dark": ("bright",), "bright": ("dark",), "smooth": ("rough",), "rough": ("smooth",), "shiny": ("matte",),
    "matte": ("shiny",), "furry": ("bald",), "bald": ("hairy",), "round": ("square", "triangular"), "circular": ("square",
    "triangular"), "square": ("round", "triangular"), "rectangular": ("round", "triangular"), "triangular": ("round",
    "square"), "oval": ("square", "triangular"), "spherical": ("cubic",), "hexagonal": ("round", "square"),
    "heart-shaped": ("square", "round"), "star-shaped": ("square", "round"), "striped": ("plain", "dotted"),
    "dotted": ("plain", "striped"), "spotted": ("plain", "striped"), "plain": ("striped", "dotted"), "checkered": ("plain",
    "striped"), "patterned": ("plain",), "floral": ("plain", "striped"), "wooden": ("metal", "glass"), "wood": ("metal",
    "glass"), "metal": ("wooden", "glass"), "metallic": ("wooden", "glass"), "glass": ("wooden", "metal"),
    "plastic": ("wooden", "metal"), "stone": ("wooden", "metal"), "brick": ("wooden", "glass"), "concrete": ("wooden",
    "glass"), "marble": ("wooden", "metal"), "leather": ("metal", "wooden"), "paper": ("metal", "wooden"),
    "cardboard": ("metal", "glass"), "ceramic": ("metal", "wooden"), "steel": ("wooden", "glass"), "iron": ("wooden", "glass"),
    "woolen": ("leather",), "cotton": ("leather",), "velvet": ("leather",), "silk": ("leather",), "denim": ("leather",),
}  # fmt: skip
SHAPE_NOUNS = word_set("square oval")
MATERIAL_NOUNS = word_set(
    """
    wood metal glass plastic stone brick concrete marble leather paper cardboard steel iron cotton silk
    """
)
VISIBLE = word_set(  # adjectives that can be seen and have no plain opposite
    """
    fluffy hairy bearded rusty dusty muddy transparent translucent glowing burning frozen melting ripe rotten sliced fried
    baked grilled roasted colorful colourful multicolored muscular pregnant naked nude foggy misty stormy leafy grassy
    sandy rocky mossy wrinkled crumpled torn cracked folded rolled upside-down upright horizontal vertical diagonal
    parallel pointed pointy jagged spiky fuzzy wavy winged horned armored hooded masked barefoot blue-eyed tangled tiled
    paved carved crowded snow-covered golden-haired long-haired short-haired fancy ornate bushy braided knitted woven
    embroidered quilted dim blurry pixelated framed half-eaten holographic mechanical robotic medieval gothic victorian
    japanese chinese indian african american european
    """
)
SUBJECTIVE = word_set(  # adjectives that a picture neither shows nor fails to show
    """
    beautiful cute pretty nice lovely amazing awesome gorgeous stunning perfect good great best better real realistic
    typical simple detailed intricate elegant majestic magical mysterious dreamy epic dramatic cinematic adorable funny
    cool strange weird unusual interesting famous popular favorite own other same different various certain special common
    usual main whole entire only such more most less fantastic wonderful incredible breathtaking charming delicious tasty
    fresh traditional classic professional high low hyperrealistic photorealistic ultra highly stylized abstract minimal
    minimalist minimalistic generic basic possible first second third last next lone several many few numerous multiple
    assorted peaceful quiet calm romantic cozy friendly brave wise evil scary creepy spooky powerful left right
    """
)
MATTER = word_set(  # nouns that take no article in the singular
    """
    hair water grass snow sand food fruit rice bread cheese milk coffee tea wine beer juice ice fire smoke fog mist rain
    wood metal glass paper plastic leather clothing furniture jewelry luggage equipment lightning thunder sunlight
    moonlight mud dirt dust gold silver iron steel honey butter sugar salt pepper soup meat beef pork chicken bacon ham
    pasta spaghetti pizza-dough corn wheat hay broccoli lettuce garlic popcorn chocolate fur skin makeup lipstick traffic
    graffiti foliage greenery armor money cash music toast soap ketchup mustard ivy moss art text software wildlife
    """
)
UNIQUE = word_set("sun moon sky sea ocean ground horizon earth world universe internet eiffel-tower")

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
DETERMINERS = word_set(
    """
    a an the this that these those some any each every all both another its his her their my your our several many few
    various multiple numerous
    """
)
MEASURES = word_set(  # "a group of dogs" shows dogs
    """
    pair group bunch couple lot lots set pile stack row herd flock crowd handful series collection variety number dozen
    dozens kind type sort piece bit cluster array team line bouquet selection assortment bundle heap load plenty
    """
)
MEDIA = word_set(  # what a caption may call the picture itself
    """
    photo photos photograph picture pictures image images drawing illustration painting sketch render rendering icon icons
    clipart clip-art close-up closeup view shot portrait cartoon logo emoji sticker watercolor screenshot scene depiction
    vector artwork art rendition snapshot selfie doodle print comic anime figure symbol pictogram silhouette wallpaper
    graphic still photography headshot macro engraving animation
    """
)
NO_OBJECT = word_set(  # nouns that name no thing in the picture
    """
    background backgrounds backdrop foreground style styles color colors colour colours side sides top bottom left right
    middle center centre corner corners edge edges front back kind type sort lot way day time times night morning evening
    afternoon moment look looks pose position distance direction shape shapes size pattern theme mood atmosphere lighting
    light lights quality detail details resolution composition perspective angle focus depth aspect ratio camera-angle end
    part parts form manner use example variety number amount one ones thing things something someone anything everything
    other others rest kinds types viewer viewers body-shot masterpiece solo artist artists season world inside outside
    center frame vibe aesthetic concept century era age years year word words text letters number numbers
    """
)
SKIPPED_TAGS = word_set(
    """
    masterpiece best-quality high-quality low-quality worst-quality quality 4k 8k hd uhd hdr highres absurdres lowres
    detailed ultra-detailed highly-detailed extremely-detailed intricate intricate-details sharp-focus solo artstation
    trending-on-artstation cinematic cinematic-lighting realistic photorealistic hyperrealistic unreal-engine
    unreal-engine-5 octane-render depth-of-field bokeh award-winning professional digital-art concept-art illustration
    rating-safe rating-explicit rating-questionable general sensitive studio-lighting soft-lighting volumetric-lighting
    dramatic-lighting raw-photo dslr film-grain best-quality simple upper-body full-body cowboy-shot looking-at-viewer
    monochrome greyscale grayscale flat-design minimalist minimalism vector anime oil-painting watercolor pixel-art
    3d-render 3d matte-painting smooth elegant symmetrical centered isolated safe nsfw sfw wallpaper vibrant-colors
    vivid-colors pastel-colors warm-colors natural-light golden-hour ultra-realistic very-detailed official-art newest
    oldest very-aesthetic
    """
)

BE = word_set("is are was were be being been isn't aren't")
HAVE = word_set(
    """
    has have having had featuring including containing with contains includes features
    """
)
RELATIVES = word_set("that which who whom whose where when while there here what")
PRONOUNS = word_set("it he she they them him i you we us me itself himself herself themselves")
SHOWS = word_set(
    """
    shows show showing depicts depict depicting displays displaying presents presenting portrays portraying
    """
)
UNREAL = word_set(  # what follows is not shown, or is text
    """
    without no not never like as than except instead nor minus lacking missing resembling says say saying labeled labelled
    titled called named spelling
    """
)
PARTICIPLES = word_set("seen drawn shown made taken viewed done written worn held lit set painted")  # what was done to it
POSTURES = word_set(
    """
    sits sitting stands standing lies lying lays laying rests resting hangs hanging placed seated positioned located
    situated perched parked mounted leaning leans kneeling floating floats hovering hovers sleeping sleeps posing isolated
    centered
    """
)
ONE_WAY_VERBS = word_set(  # what the other way round would be another picture
    """
    riding rides eating eats holding holds wearing wears carrying carries driving drives drinking drinks reading reads
    chasing chases pulling pulls pushing pushes cutting cuts throwing throws catching catches kicking kicks playing plays
    feeding feeds painting paints hitting hits washing washes cooking cooks opening opens biting bites using uses walking
    walks petting pets
    """
)
FINITE_VERBS = word_set(
    """
    sits stands lies rests hangs flies walks runs jumps plays holds wears rides eats drinks looks sleeps swims floats
    faces points shines grows leans smiles laughs carries drives pulls pushes reads writes sings dances uses watches waits
    chases catches throws kicks climbs crosses covers surrounds fills glows hovers sails stares gazes crouches kneels
    rises sets falls lands barks burns moves comes goes takes gives makes seems appears becomes turns cuts cooks bites
    feeds opens closes contains includes features says
    """
)
PLAIN_VERBS = word_set(  # verbs after a plural: "two cats sit on a mat"
    """
    sit stand lie rest hang fly walk run jump hold wear ride eat drink sleep swim float grow lean smile laugh carry drive
    pull push read write sing dance watch wait chase catch throw kick climb cross cover surround glow hover sail stare
    gaze crouch kneel fall play
    """
)
ING_NOUNS = word_set(
    """
    building buildings ring king string wing thing ceiling painting drawing clothing lightning evening morning earring
    pudding spring sting swing sling wedding awning railing lettering bowling boxing fishing dumpling duckling gosling
    sibling stocking frosting icing topping crossing landing dressing lighting packaging piping icing inkling sapling
    seedling viking viewing clearing opening
    """
)
CLASSIFYING = word_set(  # "a washing machine" is a thing, not a machine that washes
    """
    washing sewing swimming shopping dining living parking rocking frying boxing bowling fishing hiking sleeping-bag
    cutting chewing wedding playing-card boarding drinking cooking racing sailing building ironing knitting measuring
    mixing rolling serving sliding spinning steering tuning vending watering weighing welding wrapping writing waiting
    ceiling stained sailing recording
    """
)
ED_NOUNS = word_set(
    """
    bed seed weed sled shed moped steed deed feed reed breed speed hundred thoroughbred bobsled seabed flatbed
    """
)
LY_WORDS = word_set(  # no adverbs
    """
    fly butterfly dragonfly firefly ladyfly family belly lily jelly bully holly trolley curly ugly friendly lovely silly
    woolly elderly early lonely ply doily gully potbelly assembly wooly only
    """
)
ADVERBS = word_set(
    """
    very quite really too so almost nearly rather mostly partly just still also even together away alone apart
    """
)
COMPOUNDS = word_set(
    """
    hot-dog light-bulb ice-cream teddy-bear polar-bear red-panda black-hole fire-truck traffic-light stop-sign
    christmas-tree french-fries hot-pot television-set tv-set tea-set chess-set green-tea white-wine red-wine black-bear
    brown-bear black-board white-board blue-whale red-cross goldfish gold-fish golden-retriever golden-gate orange-juice
    gold-medal silver-medal red-carpet green-house high-heels high-school wild-boar long-bow white-house great-dane
    paper-clip cutting-board hot-air-balloon sweet-potato baby-carriage sea-horse common-room first-aid-kit first-aid
    flat-screen-television flat-screen flat-screen-tv magnifying-glass shooting-star flying-saucer wine-glass hour-glass
    light-house stained-glass light-switch swiss-army-knife bald-eagle sunny-side swimming-pool sleeping-bag rolling-pin
    rolling-stone walking-stick flying-fish dark-chocolate full-moon new-moon half-moon mixed-drink playing-card
    playing-cards iron-man steel-drum next-door old-school safety-pin dry-cleaning big-ben fat-free great-wall double-bass
    double-decker single-malt dead-end soft-drink soft-toy
    """
)

_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth",
    "goose": "geese", "mouse": "mice", "ox": "oxen", "leaf": "leaves", "knife": "knives", "wolf": "wolves", "shelf": "shelves",
    "loaf": "loaves", "half": "halves", "calf": "calves", "life": "lives", "wife": "wives", "scarf": "scarves",
    "thief": "thieves", "elf": "elves", "hoof": "hooves", "cactus": "cacti", "potato": "potatoes", "tomato": "tomatoes",
    "hero": "heroes", "mango": "mangoes", "mosquito": "mosquitoes", "volcano": "volcanoes", "torpedo": "torpedoes",
    "die": "dice", "fungus": "fungi", "bus": "buses", "gas": "gases", "lens": "lenses", "canvas": "canvases", "axe": "axes",
    "shoe": "shoes", "toe": "toes", "horseshoe": "horseshoes", "canoe": "canoes", "tie": "ties", "pie": "pies",
    "cookie": "cookies", "movie": "movies", "zombie": "zombies", "genie": "genies", "selfie": "selfies", "eye": "eyes",
    "quiz": "quizzes", "antenna": "antennas", "smoothie": "smoothies", "pixie": "pixies", "house": "houses", "horse": "horses",
    "nurse": "nurses", "rose": "roses", "vase": "vases", "nose": "noses", "purse": "purses", "moose": "moose",
    "cheese": "cheese", "hose": "hoses", "blouse": "blouses", "case": "cases", "suitcase": "suitcases",
    "bookcase": "bookcases", "briefcase": "briefcases", "lighthouse": "lighthouses", "greenhouse": "greenhouses",
    "cause": "causes", "fuse": "fuses", "base": "bases", "phase": "phases", "corpse": "corpses", "headache": "headaches",
    "ache": "aches", "seahorse": "seahorses", "birdhouse": "birdhouses", "treehouse": "treehouses", "warehouse": "warehouses",
    "prize": "prizes", "maze": "mazes", "freeze": "freezes", "breeze": "breezes", "gauze": "gauzes", "cassette": "cassettes",
}  # fmt: skip
_SINGULAR = {plural: one for one, plural in _IRREGULAR.items()}
_SAME = word_set(
    """
    sheep fish deer moose aircraft salmon shrimp squid bison swine series species spacecraft hovercraft trout tuna
    """
)
ALWAYS_PLURAL = word_set(
    """
    scissors glasses sunglasses pants jeans shorts trousers headphones binoculars tweezers pliers tongs goggles pajamas
    pyjamas clothes grapes noodles fries leggings tights overalls chopsticks stairs dishes ruins spectacles earphones
    earbuds shears
    """
)
_SINGULAR_S = word_set(
    """
    bus gas lens canvas atlas christmas iris tennis chess chaos rhinoceros cosmos asparagus hibiscus news mathematics
    gymnastics physics pancreas texas paris swiss alias bias cutlass osmosis basis oasis oculus kudos athletics mars venus
    """
)


def is_plural(noun: str) -> bool:
    """Whether the last word of a noun is a plural."""
    word = noun.rsplit(" ", 1)[-1]
    if word in ALWAYS_PLURAL or (word in _SINGULAR and word not in _SAME and _SINGULAR[word] != word):
        return True
    if word.endswith(("women", "children")) or (word.endswith("men") and word not in ("omen", "specimen", "abdomen", "semen")):
        return True
    return word.endswith("s") and len(word) > 2 and not word.endswith(("ss", "us", "is", "'s")) and word not in _SINGULAR_S


def plural(noun: str) -> str:
    """The plural of a noun or a compound; a plural stays as it is."""
    front, word = _cut(noun)
    if is_plural(word) or word in _SAME or (word in MATTER and word not in ("glass", "chicken", "paper")):
        return noun
    if word in _IRREGULAR:
        return front + _IRREGULAR[word]
    for one, many in (("man", "men"), ("woman", "women"), ("child", "children")):
        if word.endswith(one) and len(word) > len(one) + 1 and word not in ("human", "german", "roman", "talisman", "ottoman"):
            return front + word.removesuffix(one) + many
    if word.endswith(("s", "x", "z", "ch", "sh")) and not word.endswith("stomach"):
        return front + word + "es"
    if word.endswith("y") and len(word) > 2 and word[-2] not in "aeiou":
        return front + word[:-1] + "ies"
    return front + word + "s"


def singular(noun: str) -> str:
    """The singular of a noun or a compound; what has none stays as it is."""
    front, word = _cut(noun)
    if word in ALWAYS_PLURAL or not is_plural(word):
        return noun
    if word in _SINGULAR:
        return front + _SINGULAR[word]
    for one, many in (("woman", "women"), ("man", "men"), ("child", "children")):
        if word.endswith(many):
            return front + word.removesuffix(many) + one
    if word.endswith("ies") and len(word) > 4:
        return front + word[:-3] + "y"
    if word.endswith(("sses", "xes", "zzes", "ches", "shes", "uses")):
        return front + word[:-2]
    return front + word[:-1]


def _cut(noun: str) -> tuple[str, str]:
    front, space, word = noun.rpartition(" ")
    return front + space, word


def article(words: str) -> str:
    """`a` or `an`, by the sound that the words begin with."""
    first = words.split(" ", 1)[0].lower()
    if first.startswith(("uni", "use", "eu", "one", "ufo", "ukulele", "utensil", "uti")) and not first.startswith(
        ("unin", "unim")
    ):
        return "a"
    if first.startswith(("hour", "honest", "heir")) or first in ("x-ray", "mp3", "lp", "rv", "led", "lcd", "atm"):
        return "an"
    return "an" if first[:1] in "aeiou" and first else "a"


KINSHIP = tuple(  # names that one picture may fit alike: none is a contrast of another
    frozenset(group.split(","))
    for group in (
        "tv,television,tv set,television set,screen,monitor,display", "man,person,human,guy,boy,male,adult,gentleman,father",
        "woman,person,human,girl,lady,female,adult,mother", "boy,child,kid,person,toddler,baby",
        "girl,child,kid,person,toddler,baby", "people,person,man,woman,crowd,child", "dog,puppy,animal,pet,hound",
        "cat,kitten,animal,pet", "horse,pony,animal", "bird,animal,parrot,duck,eagle,owl,penguin,chicken",
        "car,vehicle,automobile,truck,van,taxi,suv", "bike,bicycle,vehicle,motorcycle,motorbike",
        "plane,airplane,aircraft,aeroplane,jet", "phone,telephone,smartphone,cellphone,mobile phone,cell phone", "sofa,couch",
        "street,road", "boat,ship,vessel,sailboat", "house,building,home,cottage", "flower,plant,rose,sunflower,tulip,blossom",
        "tree,plant", "computer,laptop,pc", "shoe,boot,sneaker,footwear", "hat,cap", "cup,mug", "picture,photo,image",
        "mountain,hill", "sea,ocean,water,lake", "headphones,headset,earphones", "fruit,apple,orange,banana,food",
        "glasses,spectacles,sunglasses", "rabbit,bunny", "ocean,sea,water,beach", "forest,wood,woods,tree", "clock,watch",
        "chair,seat,armchair,stool", "table,desk", "coat,jacket", "insect,bug,bee,ant,butterfly,fly", "robot,machine,android",
        "gift,present", "stone,rock", "rocket,spaceship", )
)  # fmt: skip


_GROUPS: dict[str, set[int]] = {}
for _number, _group in enumerate(KINSHIP):
    for _name in _group:
        _GROUPS.setdefault(_name, set()).add(_number)


@lru_cache(maxsize=16384)
def _names(noun: str) -> tuple[frozenset[str], frozenset[int]]:
    """The words of a noun, and the groups that it or its head belongs to."""
    one = singular(noun.lower())
    return frozenset(one.split()), frozenset(_GROUPS.get(one, set()) | _GROUPS.get(one.rsplit(" ", 1)[-1], set()))


def akin(one: str, other: str) -> bool:
    """Whether a picture of the one might be called a picture of the other, so that neither contradicts it."""
    (words, groups), (other_words, other_groups) = _names(one), _names(other)
    return not (words.isdisjoint(other_words) and groups.isdisjoint(other_groups))
